"""Smaller forms of a bundle's graphs: in eight bits, or in half precision.

`int8` has weights and what is computed in eight bits, whose ranges are measured on rows of the corpus
(static, QDQ; Jacob et al., arXiv 1712.05877, 2 and 3); `int8-dynamic` measures them anew in each run;
`float16` keeps inputs and outputs in single precision.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from ...pipelines.bundle import ON_CPU, Arrays, BundleInfo, FormInfo, LoadedBundle, graph_file
from ...pipelines.spec import Form
from ...workflows.errors import EaglerayError
from .layers import KINDS, Providers, errors_by_layer, jumps, layers_of
from .parity import Decision, compare, decide
from .rounding import Range, measure, round_graph, rounded_nodes

NAMED = 3
"""Layers that a refusal names."""


@dataclass(frozen=True)
class Forms:
    """Which further forms graphs are written in, and how close they must be.

    Attributes:
        forms: which.
        keep: modules whose layers stay in single precision, by path.
        max_flips: share of rows that may be decided otherwise.
        ranges: a layer's path and `.of_input` or `.of_result` → range of that, which a training has found;
            others are measured.
    """

    forms: tuple[Form, ...] = ()
    keep: tuple[str, ...] = ()
    max_flips: float = 0.0
    ranges: Mapping[str, Range] = field(default_factory=dict)


def write_forms(
    folder: Path, info: BundleInfo, seen: Arrays, golden: Arrays, options: Forms
) -> dict[Form, FormInfo]:
    """Write a bundle's graphs in further forms, and hold what those decide to what it decides.

    Args:
        folder: of the bundle, not sealed yet.
        info: what it will say.
        seen: rows of the corpus that ranges are measured on (`CorpusReader.examples`).
        golden: rows on which decisions are compared.
        options: which forms.

    Raises:
        EaglerayError: when a form decides otherwise too often, with which layers are at fault.
    """
    recorder = Recorder(folder, info)
    decide(recorder, seen)
    paths = {graph: folder / graph_file(graph) for graph in info.graphs}
    layers = {graph: layers_of(onnx.load(path)) for graph, path in paths.items()}
    _check_kept(options.keep, [layer for some in layers.values() for layer in some])
    before = decide(LoadedBundle(folder, info), golden)
    found: dict[Form, FormInfo] = {}
    for form in options.forms:
        for graph, path in paths.items():
            changed = [
                one for one in layers[graph] if not any(_is_within(one, kept) for kept in options.keep)
            ]
            where, fed = folder / graph_file(graph, form), recorder.fed[graph]
            convert(path, where, form, fed, changed, options.ranges)
        after = decide(LoadedBundle(folder, info, form), golden)
        flips = compare(before, after)
        for name, where in flips.items():
            if len(where) > options.max_flips * len(before[name].found):
                raise _flipped(form, name, where, before[name], folder, recorder.fed)
        sizes = [
            sum((folder / graph_file(graph, one)).stat().st_size for graph in paths) for one in (form, None)
        ]
        found[form] = FormInfo(
            decided={name: len(one.found) for name, one in before.items()},
            flips={name: len(where) for name, where in flips.items()},
            right={name: one.share_right for name, one in after.items() if one.share_right is not None},
            size_share=sizes[0] / sizes[1],
        )
    return found


def _flipped(
    form: Form,
    name: str,
    where: Sequence[str],
    decision: Decision,
    folder: Path,
    fed: Mapping[str, Sequence[Arrays]],
) -> EaglerayError:
    """The refusal of a form that decides otherwise, with the layers after which it is off."""
    at_fault = layers_at_fault(decision, folder, form, fed)
    told = in_words(at_fault)
    return EaglerayError(
        f"{form} decides {len(where)} of {len(decision.found)} rows otherwise ({name}: {where[0]}); results "
        f"go astray most at {told}",
        f"leave that in single precision (--set STAGE.keep=[{at_fault[0][0]}]), let ranges be measured on "
        "more rows (calibration_rows), or allow some (max_flips)",
        graph_file(decision.graphs[0], form),
    )


def layers_at_fault(
    decision: Decision,
    folder: Path,
    form: Form | None,
    fed: Mapping[str, Sequence[Arrays]],
    providers: Callable[[str], Providers] = lambda graph: ON_CPU,
) -> list[tuple[str, float]]:
    """Layers after which a decision's graphs are further off than before, and by how much, the most first.

    Args:
        decision: that flips.
        folder: of the bundle.
        form: of the graphs that are off.
        fed: graph → what it was given.
        providers: of a graph, what it ran on.
    """
    found: list[tuple[str, float]] = []
    for graph in decision.graphs:
        pair = folder / graph_file(graph), folder / graph_file(graph, form)
        found += jumps(errors_by_layer(*pair, fed[graph][0], providers(graph)), NAMED)
    return sorted(found, key=lambda one: -one[1])[:NAMED]


def in_words(at_fault: Sequence[tuple[str, float]]) -> str:
    """Layers and how far off they are."""
    return ", ".join(f"{layer} ({error:.2g} of its result)" for layer, error in at_fault)


def _check_kept(keep: Sequence[str], layers: Sequence[str]) -> None:
    for one in keep:
        if not any(_is_within(layer, one) for layer in layers):
            near = ", ".join(get_close_matches(one, layers)) or f"such as {layers[0]}"
            raise EaglerayError(
                f"the model has no layer {one} that could be kept", f"there are {near}", "keep"
            )


def _is_within(layer: str, module: str) -> bool:
    return layer == module or layer.startswith(f"{module}.")


class Recorder(LoadedBundle):
    """A bundle that keeps what its graphs were given.

    Attributes:
        fed: graph → what it was given in each run.
    """

    def __init__(self, folder: Path, info: BundleInfo) -> None:
        super().__init__(folder, info)
        self.fed: defaultdict[str, list[Arrays]] = defaultdict(list)

    def run(self, graph: str, feed: Arrays, outputs: Sequence[str] | None = None) -> Arrays:
        """See `LoadedBundle`."""
        self.fed[graph].append(dict(feed))
        return super().run(graph, feed, outputs)


def convert(
    path: Path,
    output: Path,
    form: Form,
    feeds: Sequence[Arrays],
    layers: Collection[str],
    ranges: Mapping[str, Range] | None = None,
) -> None:
    """Write a graph in another form.

    Args:
        path: of the graph.
        output: where the other goes.
        form: which.
        feeds: what it was given on rows of the corpus.
        layers: whose operations are changed, by module path.
        ranges: see `Forms`.
    """
    model = onnx.load(path)
    wanted = {name: layer for layer, names in layers_of(model).items() if layer in layers for name in names}
    if form == "int8-dynamic":  # of others it knows no ranges
        matrices = {one.name for one in model.graph.initializer if len(one.dims) == 2}
        wanted = {
            node.name: wanted[node.name]
            for node in model.graph.node
            if node.name in wanted and not matrices.isdisjoint(node.input)
        }
    if form == "float16":
        _halve(model, output, wanted)
    elif form == "int8":
        _round(model, output, wanted, feeds, ranges or {})
    else:
        quantize_dynamic(
            path,
            output,
            op_types_to_quantize=list(KINDS),
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=sorted(wanted),
        )


def _round(
    model: onnx.ModelProto,
    output: Path,
    layers: Mapping[str, str],
    feeds: Sequence[Arrays],
    known: Mapping[str, Range],
) -> None:
    """Write a graph in eight bits; layers: operation → whose it is."""
    nodes = rounded_nodes(model, layers)
    values = {
        one.node: {
            name: f"{layers[one.node]}.{part}"
            for name, part in ((one.data, "of_input"), (one.result, "of_result"))
            if name is not None
        }
        for one in nodes
    }
    missing = (name for some in values.values() for name, told in some.items() if told not in known)
    seen = measure(model, missing, feeds)
    ranges = {
        node: {name: known[told] if told in known else seen[name] for name, told in some.items()}
        for node, some in values.items()
    }
    round_graph(model, nodes, ranges)
    onnx.save(model, output)


def _halve(model: onnx.ModelProto, output: Path, nodes: Collection[str]) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    kept = [node.name for node in model.graph.node if node.op_type in KINDS and node.name not in nodes]
    halved = convert_float_to_float16(model, keep_io_types=True, node_block_list=kept)
    onnx.save(halved, output)
