"""A STUN server with two addresses and two ports (RFC 5780), written apart from the product's codec.

argv: ADDRESS SECOND. Prints `up` when it serves.
"""

import binascii
import select
import socket
import struct
import sys

COOKIE = 0x2112A442
PORTS = (3478, 3479)


def xored(address: tuple[str, int]) -> bytes:
    """XOR-MAPPED-ADDRESS."""
    number = struct.unpack("!I", socket.inet_aton(address[0]))[0]
    return struct.pack("!HHBBHI", 0x20, 8, 0, 1, address[1] ^ COOKIE >> 16, number ^ COOKIE)


def plain(kind: int, address: tuple[str, int]) -> bytes:
    return struct.pack("!HHBBH4s", kind, 8, 0, 1, address[1], socket.inet_aton(address[0]))


def response(transaction: bytes, client: tuple[str, int], other: tuple[str, int]) -> bytes:
    body = xored(client) + plain(0x802C, other)
    message = struct.pack("!HHI", 0x101, len(body) + 8, COOKIE) + transaction + body
    return message + struct.pack("!HHI", 0x8028, 4, binascii.crc32(message) ^ 0x5354554E)


def main() -> None:
    places = [(address, port) for address in sys.argv[1:3] for port in PORTS]
    sockets = {place: socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for place in places}
    for place, sock in sockets.items():
        sock.bind(place)
    sys.stdout.write("up\n")
    sys.stdout.flush()
    while True:
        for sock in select.select(list(sockets.values()), [], [])[0]:
            data, client = sock.recvfrom(2048)
            address, port = sock.getsockname()
            if len(data) < 20 or data[:2] != b"\x00\x01":
                continue
            at = data.find(b"\x00\x03\x00\x04", 20)
            change = data[at + 7] if at >= 0 else 0
            second = next(each for each in sys.argv[1:3] if each != address)
            other = (second, PORTS[1 - PORTS.index(port)])
            source = (other[0] if change & 4 else address, other[1] if change & 2 else port)
            sockets[source].sendto(response(data[8:20], client, other), client)


if __name__ == "__main__":
    main()
