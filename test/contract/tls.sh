# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The kernel's TLS on captured connections, where the kernel has it (CONFIG_TLS): the client puts it
# on its socket with the same keys in both directions, so an echo of its records is its own text.

# Reads the proxy's line, then sends through TLS and reads the echo: "LABEL and TEXT".
TLS_ECHO='
import socket, struct, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family)
s.settimeout(10)
s.connect((sys.argv[1], int(sys.argv[2])))
line = b""
while not line.endswith(b"\n"):
    line += s.recv(1)
s.setsockopt(6, 31, b"tls")
keys = struct.pack("=HH8s16s4s8s", 0x0303, 51, b"i" * 8, b"k" * 16, b"s" * 4, bytes(8))
for direction in (1, 2):
    s.setsockopt(282, direction, keys)
text = b"through the proxy and back " * 2000
s.sendall(text)
got = b""
while len(got) < len(text):
    part = s.recv(65536)
    if not part:
        break
    got += part
print(line.decode().split()[0], "all of it came back" if got == text else "something else came back")
'

has_kernel_tls() {
	grep -qw tls /proc/sys/net/ipv4/tcp_available_ulp
}

kernel_tls() {
	local name=kernel-tls address
	has_kernel_tls || return 0
	fresh $name || return
	outbound_proxy $name separate --echo
	inbound_proxy $name separate --echo
	for address in "$EXT4" "$EXT6"; do
		expect "$name: app -> $address" "label=outbound all of it came back" \
			as_pod $name 1000 1000 python3 -c "$TLS_ECHO" "${address//[\[\]]/}" 80
	done
	for address in 10.244.0.5 fd00:10::5; do
		expect "$name: client -> $address" "label=inbound all of it came back" \
			in_world $name python3 -c "$TLS_ECHO" "$address" 8080
	done
	pod_down $name
}
