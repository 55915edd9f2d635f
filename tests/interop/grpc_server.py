"""A gRPC server by gRPC's own implementation: one method of each kind, and one for each way to fail.

Messages are plain bytes, so that nothing has to be generated. Says "ready PORT" once it listens.
"""

from concurrent import futures

import grpc


class Service(grpc.GenericRpcHandler):
    def service(self, details):
        name = details.method.removeprefix("/test.Echo/")
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(unary),
            "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
            "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
            "Bidirectional": grpc.stream_stream_rpc_method_handler(bidirectional),
            "Slow": grpc.unary_unary_rpc_method_handler(slow),
            "FailAtOnce": grpc.unary_unary_rpc_method_handler(fail_at_once),
            "FailLater": grpc.unary_stream_rpc_method_handler(fail_later),
            "Forever": grpc.unary_stream_rpc_method_handler(forever),
            "Secret": grpc.unary_unary_rpc_method_handler(unary),
        }
        return handlers.get(name)


def unary(request, context):
    context.send_initial_metadata([("x-initial", "one")])
    context.set_trailing_metadata([("x-trailing", "two"), ("x-binary-bin", b"\x00\xff")])
    return b"echo " + request


def server_stream(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def client_stream(requests, context):
    return b"|".join(requests)


def bidirectional(requests, context):
    for request in requests:
        yield b"echo " + request


def slow(request, context):
    deadline = context.time_remaining()
    # Until the caller is gone; the bound only ends a run that failed.
    gone = futures.Future()
    context.add_callback(lambda: gone.set_result(None))
    gone.result(timeout=60)
    return str(deadline).encode()


def fail_at_once(request, context):
    context.set_trailing_metadata([("x-why", "at once")])
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "100 % wrong: ü")


def fail_later(request, context):
    yield b"first"
    context.set_trailing_metadata([("x-why", "later")])
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more")


def forever(request, context):
    gone = futures.Future()
    context.add_callback(lambda: (print("cancelled", flush=True), gone.set_result(None)))
    yield b"first"
    gone.result(timeout=60)


def main():
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), handlers=[Service()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print("ready", port, flush=True)
    server.wait_for_termination()


main()
