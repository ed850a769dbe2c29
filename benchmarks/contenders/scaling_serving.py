"""A trace of arrivals, simulated under a policy: ours, or Ray Serve's default."""

import json
import sys
from dataclasses import replace

from eagleray.actors.serving.peers import serves_own
from eagleray.actors.serving.scaling import Objective
from eagleray.actors.serving.simulating import Machine, Simulation, by_objective
from eagleray.actors.serving.traces import TRACES

TUNED = {"target_ongoing_requests": 8.0, "upscale_delay_s": 5.0, "downscale_delay_s": 60.0}
"""What a person may well set who wants it to be quicker and thriftier."""

name, who, latency_s, most = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
trace, machine = TRACES[name], Machine()
if who == "ours":
    policy = by_objective(Objective(latency_s, machine.startup_s, 1, most))
else:
    # it takes the mean of half a minute
    machine = replace(machine, look_back_s=30.0)
    policy = serves_own(min_replicas=1, max_replicas=most, **(TUNED if who == "tuned" else {}))
outcome = Simulation(machine, policy).run(trace.arrivals(), trace.seconds + 30)
print(json.dumps({"replica_s": outcome.replica_s, "within": outcome.within(latency_s)}))
