"""What the kernel lists of IPVS (/proc/net/ip_vs, ip_vs_info_seq_show of Linux 6.1)."""

from cni.host.ipvs import RealServer, parse

LISTING = """IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
UDP  C6336407:0035 rr
  -> 0AC80502:0035      Masq    1      0          0
  -> 0AC80503:0035      Masq    0      0          0
TCP  [2001:0db8:0051:0000:0000:0000:0000:0001]:1F90 wlc persistent 300 0
  -> [fd00:0200:0000:0000:0000:0000:0000:0005]:0050      Route   3      0          0
FWM  00000007 rr
  -> 0AC80504:0000      Tunnel  1      0          0
"""


def test_a_listing():
    padded = "".join(f"{line}  \n" for line in LISTING.splitlines())  # as the kernel does
    assert parse(padded) == [
        RealServer("udp", "198.51.100.7", 53, "10.200.5.2", 53, True),
        RealServer("tcp", "2001:db8:51::1", 8080, "fd00:200::5", 80, False),
    ]


def test_no_listing():
    assert parse("") == []
    assert parse("IP Virtual Server version 1.2.1 (size=4096)\n") == []
