"""Lists tunneld's tunnels with nothing but the socket: the types come by reflection."""
import sys

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

# gRPC's C core derives the authority of a Unix socket from its path, percent-encoded; the HTTP/2 library of the daemon
# takes only what a host name can be.
OPTIONS = [("grpc.default_authority", "localhost")]

with grpc.insecure_channel(f"unix:{sys.argv[1]}", options=OPTIONS) as channel:
    health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="tunneld.v1.Tunnels"), timeout=10)
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(health.status))
    database = ProtoReflectionDescriptorDatabase(channel)
    assert "tunneld.v1.Tunnels" in database.get_services()
    pool = descriptor_pool.DescriptorPool(database)
    method = pool.FindServiceByName("tunneld.v1.Tunnels").FindMethodByName("List")
    request = message_factory.GetMessageClass(method.input_type)
    response = message_factory.GetMessageClass(method.output_type)
    call = channel.unary_unary("/tunneld.v1.Tunnels/List", request.SerializeToString, response.FromString)
    for tunnel in call(request(), timeout=10).tunnels:
        print(tunnel.name, tunnel.WhichOneof("state"))
