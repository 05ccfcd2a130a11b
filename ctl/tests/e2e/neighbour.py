"""A program of another user: connects to HOST:PORT or to the path of a Unix socket, asks an echo for a word, and prints
what came of it."""

import socket
import sys

address = sys.argv[1]
try:
    if address.startswith("/"):
        client = socket.socket(socket.AF_UNIX)
        client.connect(address)
    else:
        host, port = address.rsplit(":", 1)
        client = socket.create_connection((host.strip("[]"), int(port)))
    client.settimeout(60)
    client.sendall(b"eword")
    answer = client.recv(4)
    print("answered" if answer == b"word" else "closed" if answer == b"" else "something else")
except PermissionError:
    print("kept out")
except (ConnectionResetError, BrokenPipeError):
    print("reset")
