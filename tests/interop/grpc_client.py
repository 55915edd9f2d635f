"""Calls the methods of grpc_server.py through a proxy: `grpc_client.py TARGET AUTHORITY`. One JSON line a case."""

import json
import sys
import threading
import time

import grpc

PATIENCE = 30


def main():
    target, authority = sys.argv[1:3]
    options = [("grpc.default_authority", authority), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(target, options) as channel:
        for case in CASES:
            begun = time.monotonic()
            outcome = case(channel)
            outcome["seconds"] = round(time.monotonic() - begun, 3)
            print(json.dumps({"case": case.__name__, **outcome}), flush=True)


def unary(channel):
    return one(channel.unary_unary(method("Unary")), b"hello")


def large(channel):
    """Over every flow-control window on the way, both ways."""
    call = channel.unary_unary(method("Unary")).with_call(bytes(3_000_000), timeout=PATIENCE)
    return {"code": call[1].code().name, "length": len(call[0])}


def server_stream(channel):
    return many(channel.unary_stream(method("ServerStream"))(b"100", timeout=PATIENCE))


def client_stream(channel):
    return one(channel.stream_unary(method("ClientStream")), (str(n).encode() for n in range(5)))


def bidirectional(channel):
    """Each message is sent only after the answer to the one before has come."""
    answers, arrived = [], threading.Semaphore(0)

    def requests():
        for number in range(5):
            while len(answers) < number:
                arrived.acquire()
            yield str(number).encode()

    call = channel.stream_stream(method("Bidirectional"))(requests(), timeout=PATIENCE)
    for answer in call:
        answers.append(answer.decode())
        arrived.release()
    return {"code": call.code().name, "messages": answers}


def deadline(channel):
    return one(channel.unary_unary(method("Slow")), b"", timeout=0.5)


def fail_at_once(channel):
    return one(channel.unary_unary(method("FailAtOnce")), b"")


def fail_later(channel):
    return many(channel.unary_stream(method("FailLater"))(b"", timeout=PATIENCE))


def unknown_method(channel):
    return one(channel.unary_unary(method("Nothing")), b"")


def denied(channel):
    return one(channel.unary_unary(method("Secret")), b"")


def cancelled(channel):
    call = channel.unary_stream(method("Forever"))(b"", timeout=PATIENCE)
    first = next(call).decode()
    call.cancel()
    return {"code": call.code().name, "messages": [first]}


CASES = [
    unary,
    large,
    server_stream,
    client_stream,
    bidirectional,
    deadline,
    fail_at_once,
    fail_later,
    unknown_method,
    denied,
    cancelled,
]


def method(name):
    return "/test.Echo/" + name


def one(call, request, timeout=PATIENCE):
    """A call with one answer."""
    try:
        message, done = call.with_call(request, timeout=timeout)
        return {"messages": [message.decode()], **end(done)}
    except grpc.RpcError as error:
        return {"messages": [], **end(error)}


def many(call):
    """A call with a stream of answers."""
    messages = []
    try:
        for message in call:
            messages.append(message.decode())
    except grpc.RpcError:
        pass
    return {"messages": messages, **end(call)}


def end(call):
    return {
        "code": call.code().name,
        "details": call.details(),
        "initial": metadata(call.initial_metadata()),
        "trailing": metadata(call.trailing_metadata()),
    }


def metadata(pairs):
    """Without the date, which a proxy adds where a server gives none (RFC 9110, 6.6.1)."""
    show = lambda value: value.hex() if isinstance(value, bytes) else value
    return {key: show(value) for key, value in pairs or () if key != "date"}


main()
