// A peer of the mesh by Go's crypto/tls: proves an X.509-SVID, asks for one SPIFFE id, and says what was agreed.
//
//	peer serve -dir DIR -expect ID [-version 1.2] [-suite NAME] [-groups A,B] [-http2]
//	peer call .. -url https://ADDRESS/PATH
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

var groups = map[string]tls.CurveID{
	"X25519": tls.X25519, "P-256": tls.CurveP256, "P-384": tls.CurveP384, "X25519MLKEM768": tls.X25519MLKEM768,
}

func main() {
	flags := flag.NewFlagSet("peer", flag.ExitOnError)
	dir := flags.String("dir", "", "tls.crt, tls.key and ca.crt")
	expect := flags.String("expect", "", "the SPIFFE id that the other side must prove")
	version := flags.String("version", "1.3", "of TLS, and no other")
	suite := flags.String("suite", "", "of TLS 1.2")
	offered := flags.String("groups", "X25519MLKEM768,X25519,P-256", "and no others")
	url := flags.String("url", "", "what to ask for")
	http2 := flags.Bool("http2", false, "and nothing else")
	if len(os.Args) < 2 {
		fail(errors.New("serve or call"))
	}
	flags.Parse(os.Args[2:])

	config := configure(*dir, *expect)
	config.MinVersion = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}[*version]
	config.MaxVersion = config.MinVersion
	for _, known := range tls.CipherSuites() {
		if known.Name == *suite {
			config.CipherSuites = []uint16{known.ID}
		}
	}
	for _, name := range strings.Split(*offered, ",") {
		config.CurvePreferences = append(config.CurvePreferences, groups[name])
	}
	switch os.Args[1] {
	case "serve":
		serve(config, *http2)
	case "call":
		call(config, *url, *http2)
	}
}

// Both sides verify by the SPIFFE id alone: names of hosts play no part.
func configure(dir, expect string) *tls.Config {
	certificate, err := tls.LoadX509KeyPair(dir+"/tls.crt", dir+"/tls.key")
	if err != nil {
		fail(err)
	}
	pem, err := os.ReadFile(dir + "/ca.crt")
	if err != nil {
		fail(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &tls.Config{
		Certificates:       []tls.Certificate{certificate},
		ClientAuth:         tls.RequireAnyClientCert,
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			leaf := state.PeerCertificates[0]
			intermediates := x509.NewCertPool()
			for _, certificate := range state.PeerCertificates[1:] {
				intermediates.AddCert(certificate)
			}
			options := x509.VerifyOptions{
				Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
			}
			if _, err := leaf.Verify(options); err != nil {
				return err
			}
			if len(leaf.URIs) != 1 || leaf.URIs[0].String() != expect {
				return fmt.Errorf("expected %s, found %v", expect, leaf.URIs)
			}
			return nil
		},
	}
}

func serve(config *tls.Config, http2 bool) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fail(err)
	}
	server := &http.Server{
		TLSConfig: config,
		Protocols: only(http2),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			json.NewEncoder(w).Encode(describe(r.Proto, *r.TLS))
		}),
	}
	fmt.Println("ready", listener.Addr())
	fail(server.ServeTLS(listener, "", ""))
}

func call(config *tls.Config, url string, http2 bool) {
	client := &http.Client{
		Timeout:   20 * time.Second,
		Transport: &http.Transport{TLSClientConfig: config, Protocols: only(http2)},
	}
	request, err := http.NewRequest("GET", url, nil)
	if err != nil {
		fail(err)
	}
	request.Host = "server"
	answer, err := client.Do(request)
	if err != nil {
		fail(err)
	}
	if _, err = io.Copy(io.Discard, answer.Body); err != nil {
		fail(err)
	}
	said := describe(answer.Proto, *answer.TLS)
	said["status"] = answer.StatusCode
	json.NewEncoder(os.Stdout).Encode(said)
}

func only(http2 bool) *http.Protocols {
	var protocols http.Protocols
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	return &protocols
}

func describe(protocol string, state tls.ConnectionState) map[string]any {
	return map[string]any{
		"protocol": protocol,
		"peer":     state.PeerCertificates[0].URIs[0].String(),
		"suite":    tls.CipherSuiteName(state.CipherSuite),
		"resumed":  state.DidResume,
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
