"""Each ADD adds an nftables table that no DEL removes."""

import subprocess

import wrap

done = wrap.real(wrap.asked())
if wrap.verb == "ADD":
    subprocess.run(["nft", "add", "table", "inet", f"left-{wrap.cid[-12:]}"], check=False)
wrap.answer(*done)
