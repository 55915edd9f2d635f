// One mutual TLS connection by Go's crypto/tls, as server or as client, with one group. A server sends a line back.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
)

func main() {
	log.SetFlags(0)
	listen := flag.String("listen", "", "address to serve one connection on")
	dial := flag.String("dial", "", "address to dial")
	cert := flag.String("cert", "", "certificate, PEM")
	key := flag.String("key", "", "key, PEM")
	ca := flag.String("ca", "", "root, PEM")
	group := flag.Uint("group", 0, "number of the group")
	tls12 := flag.String("tls12", "", "suite of TLS 1.2; else TLS 1.3")
	flag.Parse()

	pair, err := tls.LoadX509KeyPair(*cert, *key)
	check(err)
	pem, err := os.ReadFile(*ca)
	check(err)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		log.Fatal("no root")
	}
	config := &tls.Config{
		Certificates:     []tls.Certificate{pair},
		RootCAs:          roots,
		ClientCAs:        roots,
		ClientAuth:       tls.RequireAndVerifyClientCert,
		ServerName:       "server.example",
		MinVersion:       tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.CurveID(*group)},
	}
	if *tls12 != "" {
		config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		for _, suite := range tls.CipherSuites() {
			if suite.Name == *tls12 {
				config.CipherSuites = []uint16{suite.ID}
			}
		}
		if config.CipherSuites == nil {
			log.Fatalf("no suite %s", *tls12)
		}
	}

	if *dial != "" {
		connection, err := tls.Dial("tcp", *dial, config)
		check(err)
		_, err = io.WriteString(connection, "a line of data\n")
		check(err)
		line, err := bufio.NewReader(connection).ReadString('\n')
		check(err)
		if line != "a line of data\n" {
			log.Fatalf("came back: %q", line)
		}
		agreed(connection, uint16(*group))
		return
	}
	listener, err := net.Listen("tcp", *listen)
	check(err)
	fmt.Println("listening on", listener.Addr())
	accepted, err := listener.Accept()
	check(err)
	connection := tls.Server(accepted, config)
	line, err := bufio.NewReader(connection).ReadString('\n')
	check(err)
	agreed(connection, uint16(*group))
	_, err = io.WriteString(connection, line)
	check(err)
	check(connection.Close())
}

func agreed(connection *tls.Conn, group uint16) {
	if found := connection.ConnectionState().CurveID; uint16(found) != group {
		log.Fatalf("agreed on group %v", found)
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
