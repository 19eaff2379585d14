"""A plan: which format each layer gets, what that weighs, and what is known of its quality."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...models.subject import Subject
from ...outputs import check_out
from ...storage import fingerprint, read_json, write_json
from ..activations.quantizer import ACTIVATION, Activation
from ..formats import AS_IS, BOOK_TENSORS, Format
from ..tensor_files import TensorSpec, safetensors_layout

SAFETENSORS_METADATA = {"format": "pt"}
PLAN_MARK = '"kind": "plan"'  # in every plan file
UNROUNDED = 16  # activation bits of a layer whose inputs stay as they are


@dataclass(frozen=True)
class Plan:
    """One line per eligible layer; whatever is not a layer's weight stays as it is stored."""

    subject_name: str
    subject_fingerprint: str
    formats: dict[str, Format]  # by layer, in module order
    size_bytes: int  # of the denoiser's safetensors file, header included; of several components together
    bits_per_weight: float
    budget: dict[str, float] = field(default_factory=dict)
    encoding: dict[str, Any] = field(default_factory=dict)  # effort, seed, calibration fingerprint
    activations: dict[str, Activation] = field(default_factory=dict)  # by layer; the inputs of others stay as they are
    predicted: dict[str, Any] | None = None
    measured: dict[str, Any] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    components: tuple[str, ...] = ()  # of the pipeline that the plan is for, where they are not its denoiser alone

    @classmethod
    def of(cls, subject: Subject, formats: Mapping[str, Format], **details: Any) -> Plan:
        """A plan for `subject`, sizes computed; a layer whose weight stays as it is keeps its inputs, too.

        Raises InputError for a layer that is missing, unknown or cannot have its format.
        """
        ordered = {layer.name: formats[layer.name] for layer in subject.layers if layer.name in formats}
        activations = {name: choice for name, choice in details.pop("activations", {}).items() if ordered.get(name, AS_IS) != AS_IS}
        details |= {"activations": activations, "components": subject.named_components}
        plan = cls(subject.name, subject.model_fingerprint, ordered, 0, 0.0, **details)
        plan._check_layers(subject, set(formats))
        size, bits = files_bytes(subject, tensor_specs(subject, ordered, activations)), weight_bits(subject, ordered)
        return cls(subject.name, subject.model_fingerprint, ordered, size, bits, **details)

    def with_activations(self, subject: Subject, activations: Mapping[str, Activation]) -> Plan:
        """The same formats with inputs rounded; its size is computed anew, and what was predicted and measured no longer holds."""
        kept = {name: getattr(self, name) for name in ("budget", "encoding", "provenance")}
        return Plan.of(subject, self.formats, activations=activations, **kept)

    @property
    def hash(self) -> str:
        """16 hex digits over the model, its formats and their encoding: equal for plans that give equal images."""
        return fingerprint(
            [
                self.subject_fingerprint,
                {name: str(format) for name, format in self.formats.items()},
                {name: [choice.bits, choice.scheme] for name, choice in self.activations.items()},
                self.encoding,
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """What a plan file holds, apart from its seal."""
        return {
            "subject": {
                "name": self.subject_name,
                "fingerprint": self.subject_fingerprint,
                **({"components": list(self.components)} if self.components else {}),
            },
            "budget": self.budget,
            "layers": {
                name: {"format": str(format), **_activation_json(self.activations.get(name))} for name, format in self.formats.items()
            },
            "encoding": self.encoding,
            "size_bytes": self.size_bytes,
            "bits_per_weight": self.bits_per_weight,
            "predicted": self.predicted,
            "measured": self.measured,
            "provenance": self.provenance,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str = "plan") -> Plan:
        """The plan that to_json wrote. Raises InputError for a field that is missing or of the wrong type; `where` names the source."""
        try:
            layers = content["layers"]
            return cls(
                content["subject"]["name"],
                content["subject"]["fingerprint"],
                {name: Format.parse(layer["format"]) for name, layer in layers.items()},
                content["size_bytes"],
                content["bits_per_weight"],
                content["budget"],
                content["encoding"],
                {
                    name: Activation(layer["activation_bits"], layer["activation_scheme"])
                    for name, layer in layers.items()
                    if layer["activation_bits"] != UNROUNDED
                },
                content["predicted"],
                content["measured"],
                content["provenance"],
                tuple(content["subject"].get("components", ())),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where}: field {error} is missing or of the wrong type; make the plan again with `sedaq search`") from error

    def save(self, path: str | Path) -> None:
        """Write a plan file. Raises InputError where `path` cannot be written, or holds anything but a plan."""
        check_out("out", Path(path), PLAN_MARK)
        write_json(Path(path), "plan", self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Raises InputError for a missing, damaged or hand-edited file."""
        return cls.from_json(read_json(Path(path), "plan"), str(path))

    def validate(self, subject: Subject) -> None:
        """Raise InputError unless this plan was made for `subject` and its sizes are right."""
        known = (subject.model_fingerprint, subject.fingerprint)  # the latter in plans of version 0.1.0
        if self.subject_fingerprint not in known and self.subject_fingerprint not in subject.earlier_fingerprints:
            raise InputError(
                f"the plan was made for {self.subject_name} (fingerprint {self.subject_fingerprint}), not for {subject.name} ({subject.model_fingerprint}); "
                "pass the subject that was searched, or search again"
            )
        self._check_layers(subject, set(self.formats))
        size = files_bytes(subject, tensor_specs(subject, self.formats, self.activations))
        if size != self.size_bytes:
            raise InputError(f"the plan states size_bytes {self.size_bytes}, its formats take {size}; search again")

    def _check_layers(self, subject: Subject, named: set[str]) -> None:
        layers = {layer.name: layer for layer in subject.layers}
        for name in sorted(named - layers.keys()):
            raise InputError(f"the plan names layer {name!r}, which {subject.name} does not have; `sedaq inspect` lists them")
        for name in layers:
            if name not in named:
                raise InputError(f"the plan leaves out layer {name!r} of {subject.name}; search again")
            try:
                self.formats[name].tensor_specs(layers[name].shape)
            except InputError as error:
                raise InputError(f"layer {name}: {error}") from error


def _activation_json(choice: Activation | None) -> dict[str, Any]:
    return {"activation_bits": UNROUNDED} if choice is None else {"activation_bits": choice.bits, "activation_scheme": choice.scheme}


def book_holders(formats: Mapping[str, Format]) -> dict[str, str]:
    """For every layer with shared codebooks the layer in whose name they are stored: the first by name of those with the same format."""
    holders: dict[Format, str] = {}
    for name in sorted(formats):
        if formats[name].book:
            holders.setdefault(formats[name], name)
    return {name: holders[format] for name, format in formats.items() if format.book}


def tensor_specs(
    subject: Subject, formats: Mapping[str, Format], activations: Mapping[str, Activation] | None = None
) -> dict[str, TensorSpec]:
    """Dtype and shape of every tensor of the quantized denoiser's file; shared codebooks are stored once."""
    specs = dict(subject.tensor_specs)
    holders = book_holders(formats)
    for layer in subject.layers:
        stored, _ = specs.pop(f"{layer.name}.weight")
        for name, spec in formats[layer.name].tensor_specs(layer.shape, stored).items():
            if name not in BOOK_TENSORS or holders.get(layer.name, layer.name) == layer.name:
                specs[f"{layer.name}.{name}"] = spec
    return specs | activation_specs(activations or {})


def activation_specs(activations: Mapping[str, Activation]) -> dict[str, TensorSpec]:
    """What layers with rounded inputs store beside their codes."""
    return {f"{path}.{ACTIVATION}.{name}": spec for path, choice in activations.items() for name, spec in choice.tensor_specs().items()}


def weight_bits(subject: Subject, formats: Mapping[str, Format]) -> float:
    """Total bits per eligible weight."""
    kept = subject.tensor_specs.keys() - {f"{layer.name}.weight" for layer in subject.layers}
    specs = tensor_specs(subject, formats)
    size = sum(dtype.itemsize * math.prod(shape) for name, (dtype, shape) in specs.items() if name not in kept)
    return 8 * size / sum(layer.n_weights for layer in subject.layers)


def file_bytes(specs: Mapping[str, TensorSpec]) -> int:
    """Exact bytes of a safetensors file, header and tensors."""
    header, _ = safetensors_layout(specs, SAFETENSORS_METADATA)
    return len(header) + sum(dtype.itemsize * math.prod(shape) for dtype, shape in specs.values())


def files_bytes(subject: Subject, specs: Mapping[str, TensorSpec]) -> int:
    """Exact bytes of the files that tensors make, one for each component."""
    parts = ({name.removeprefix(prefix): spec for name, spec in specs.items() if name.startswith(prefix)} for prefix in subject.prefixes)
    return sum(map(file_bytes, parts))


def model_file_bytes(subject: Subject) -> int:
    """Of the model in full precision."""
    return files_bytes(subject, subject.tensor_specs)


def share_of_file(subject: Subject, plan: Plan) -> str:
    """What a plan makes of the whole file, in words: bits are of the layers alone, and other tensors stay as they are."""
    weights = {f"{layer.name}.weight" for layer in subject.layers}
    kept = sum(dtype.itemsize * math.prod(shape) for name, (dtype, shape) in subject.tensor_specs.items() if name not in weights)
    share = plan.size_bytes / model_file_bytes(subject)
    return f"{plan.size_bytes:,} bytes, {share:.1%} of the original file; {kept:,} of them are tensors that no plan changes, which `sedaq inspect` lists"
