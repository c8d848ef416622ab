"""How small and how fast networks are without their weakest channels, on a CPU.

    python benchmarks/pruning.py [TURNS]

tf_efficientnet_lite0 and resnet50 (random weights) at 224 px, 4 photos at a time, a quarter and a half of the channels
removed; TURNS (15) of each in turn. `no blocks`: channels taken out one by one, which shows what whole blocks are for.
"""

from __future__ import annotations

import sys

import graphs

import finetune.export.pruning as pruning
from finetune.runtime import open_session


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    images = graphs.photos(4)
    for name in graphs.NETWORKS:
        whole = graphs.export(name)
        protos = {"whole": whole} | {f"share {share:g}": pruning.prune(whole, share).proto for share in (0.25, 0.5)}
        pruning.BLOCK = 1
        protos["share 0.25, no blocks"] = pruning.prune(whole, 0.25).proto
        pruning.BLOCK = 8
        sessions = {key: open_session(proto.SerializeToString(), "cpu").ort for key, proto in protos.items()}
        rates = graphs.relative_rates(sessions, images, turns)
        for key, proto in protos.items():
            print(f"{name:<24}{key:<24}{proto.ByteSize() / 1e6:>8.2f} MB{rates[key]:>8.2f} times as fast", flush=True)


if __name__ == "__main__":
    main()
