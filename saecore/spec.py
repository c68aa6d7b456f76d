"""What to run: frozen dataclasses, validated when built. A run's key hashes its content and names its artefacts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import typing
from dataclasses import dataclass, field

ARCHITECTURES = ("relu", "topk", "batch_topk", "jump_relu", "matryoshka", "ortho")
CONSTRAINTS = (
    "free",
    "soft_frozen_decoder",
    "frozen_decoder",
    "frozen_encoder",
    "untrained",
    "both_frozen",
    "oracle",
    "pca",
    "neurons",
)
DICTIONARIES = ("pca", "neurons")
"""Controls whose latents are given, each with its opposite: principal components of the data, or its dimensions."""
INITS = ("iso", "cov", "truth")
EMBEDDED = {"atlas": "atlas", "minilm": "python-docs"}
"""Models that need no folder or hub id, and the text that each is studied on."""
PROBABILITIES = ("constant", "variable")
WEIGHTS = ("trained", "random")
SPREADS = ("data", "latents")
"""What each of several processes has a share of: the rows of a batch, or the latents."""


class SpecError(ValueError):
    """A spec that cannot be run; the message names the value, the rule and the way out."""


def require(ok: bool, message: str) -> None:
    if not ok:
        raise SpecError(message)


def settle_types(spec: typing.Any) -> None:
    """Whole numbers in float fields become floats, so that equal specs have equal keys; other types are refused."""
    for item in dataclasses.fields(spec):
        value, wanted = getattr(spec, item.name), str(item.type)
        if wanted == "float" and isinstance(value, int) and not isinstance(value, bool):
            object.__setattr__(spec, item.name, float(value))
        elif wanted in ("int", "float", "bool", "str"):
            kind = {"int": int, "float": float, "bool": bool, "str": str}[wanted]
            ok = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            number = kind is float and _reads_as_number(value)
            hint = "; YAML takes 3e-3 for text and 3.0e-3 for a number" if number else ""
            require(ok, f"{item.name}={value!r} is a {type(value).__name__}; write it as {wanted}{hint}")


def _reads_as_number(value: object) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    require(value in allowed, f"{name}={value!r} is unknown; choose one of {', '.join(allowed)}")


class Keyed:
    """Content key of a frozen dataclass: equal specs have equal keys, on any machine."""

    def as_dict(self) -> dict[str, typing.Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def key(self) -> str:
        """First 12 hex digits of the SHA-256 of the spec's canonical JSON."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def differences(self, prefix: str = "") -> dict[str, typing.Any]:
        """The fields that differ from their defaults, by dotted name; fields without a default are left out."""
        found: dict[str, typing.Any] = {}
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, Keyed):
                found.update(value.differences(f"{prefix}{item.name}."))
            elif item.default is not dataclasses.MISSING and value != item.default:
                found[f"{prefix}{item.name}"] = value
        return found


@dataclass(frozen=True)
class SourceSpec(Keyed):
    """Synthetic superposition, x = sum_i b_i c_i f_i (paper, Sec. 3.1 and App. B).

    ``constant``: every feature fires with probability ``expected_l0 / n_features``.
    ``variable``: p_i ~ LogUniform(p_min, p_max), which gives an expected L0 near 20 at the defaults.
    ``sigma`` is the standard deviation of log c_i; the paper's "LogNormal(0, 0.25)" may also mean the variance,
    which is ``sigma=0.5``. ``correlation`` is the Pearson correlation of b_i within consecutive pairs of features.
    """

    probability: str = "variable"
    n_features: int = 3200
    d_model: int = 100
    expected_l0: float = 20.0
    p_min: float = 10**-5.5
    p_max: float = 10**-1.2
    sigma: float = 0.25
    correlation: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        settle_types(self)
        one_of("probability", self.probability, PROBABILITIES)
        require(self.n_features >= 2, f"n_features={self.n_features} must be at least 2")
        require(self.d_model >= 1, f"d_model={self.d_model} must be at least 1")
        require(
            0 < self.expected_l0 < self.n_features,
            f"expected_l0={self.expected_l0} must lie between 0 and n_features={self.n_features}",
        )
        require(
            0 < self.p_min < self.p_max < 1,
            f"p_min={self.p_min}, p_max={self.p_max}: need 0 < p_min < p_max < 1",
        )
        require(self.sigma >= 0, f"sigma={self.sigma} must not be negative")
        require(self.seed >= 0, f"seed={self.seed} must not be negative")
        require(0 <= self.correlation < 1, f"correlation={self.correlation} must lie in [0, 1)")
        require(
            self.correlation == 0 or self.probability == "constant",
            f"correlation={self.correlation} needs probability='constant', where a pair shares one probability",
        )

    @property
    def name(self) -> str:
        """What the ledger calls this source."""
        return self.probability


def _last_part(path: str) -> str:
    return path.rstrip("/").split("/")[-1]


@dataclass(frozen=True)
class ActivationSpec(Keyed):
    """The residual stream of a transformer on a text (paper, Sec. 4.1).

    ``model`` is ``atlas``, ``minilm``, a local folder or a hub id; ``dataset`` is ``atlas``, ``python-docs``, a local
    file or a hub id; for a vision tower it is a folder of images. ``layer`` counts blocks from 0 and means the residual
    stream that leaves the block. ``rows`` is how many token positions (of an image, patches) are kept.
    ``weights="random"`` is the same architecture freshly initialised (Heap et al. 2025).
    """

    model: str
    layer: int
    dataset: str
    d_model: int
    rows: int = 2_000_000
    context: int = 128
    weights: str = "trained"

    def __post_init__(self) -> None:
        settle_types(self)
        for name in ("model", "dataset"):
            require(bool(getattr(self, name)), f"{name}='' is empty; give a name, a folder or a hub id")
        require(self.layer >= 0, f"layer={self.layer} must not be negative; blocks are counted from 0")
        for name in ("d_model", "rows"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        require(self.context >= 2, f"context={self.context} must be at least 2 tokens")
        one_of("weights", self.weights, WEIGHTS)

    @property
    def name(self) -> str:
        """What the ledger calls this source, such as ``gemma-2-2b.12.openwebtext`` or ``atlas.1.random``.

        The text is left out where it is the embedded model's own.
        """
        own = EMBEDDED.get(self.model) == self.dataset
        parts = (_last_part(self.model), str(self.layer), "" if own else _last_part(self.dataset))
        return ".".join(filter(None, (*parts, "" if self.weights == "trained" else self.weights)))


@dataclass(frozen=True)
class SAESpec(Keyed):
    """One sparse autoencoder. ``l0`` is k for the TopK family and the target for ReLU and JumpReLU.

    ``group_size``: rows that share one selection of ``group_size * l0`` codes. 0 means the architecture's own: one row
    for TopK, the whole batch for BatchTopK, Matryoshka and OrtSAE; anything between is an intermediate design.
    ``rescale``: the selection ranks pre-activations divided by the norm of their row's centred input.
    """

    architecture: str
    d_model: int = 100
    n_latents: int = 3200
    l0: int = 20
    group_size: int = 0
    rescale: bool = False
    fractions: tuple[float, ...] = (0.5, 0.3, 0.2)  # Matryoshka groups (App. B)
    aux_coefficient: float = 1 / 32  # weight of the dead latents' loss (Gao et al. 2024)
    aux_k: int = 64  # the power of two nearest to d_model / 2 (Gao et al. 2024, App. A.2)
    dead_after: int = 500  # steps without firing; a feature with p = 3e-6 fires 3 times in as many samples
    bandwidth: float = 0.1  # JumpReLU's straight-through window, about 8 % of its thresholds here
    ortho_coefficient: float = 0.25  # OrtSAE, Korznikov et al. 2025
    ortho_every: int = 5

    def __post_init__(self) -> None:
        settle_types(self)
        one_of("architecture", self.architecture, ARCHITECTURES)
        require(self.d_model >= 1, f"d_model={self.d_model} must be at least 1")
        require(self.n_latents >= 1, f"n_latents={self.n_latents} must be at least 1")
        require(
            1 <= self.l0 <= self.n_latents,
            f"l0={self.l0} must lie between 1 and n_latents={self.n_latents}: "
            "an SAE cannot activate more latents than it has",
        )
        require(
            self.group_size >= 0,
            f"group_size={self.group_size} must not be negative (0: the architecture's own)",
        )
        require(
            self.group_size == 0 or self.architecture in ("topk", "batch_topk"),
            f"group_size={self.group_size} applies to topk and batch_topk only, not to {self.architecture!r}",
        )
        require(
            abs(sum(self.fractions) - 1) < 1e-6 and all(f > 0 for f in self.fractions),
            f"fractions={self.fractions} must be positive and sum to 1",
        )
        require(self.aux_coefficient >= 0, f"aux_coefficient={self.aux_coefficient} must not be negative")
        require(self.bandwidth > 0, f"bandwidth={self.bandwidth} must be positive")
        for name in ("aux_k", "dead_after", "ortho_every"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        require(
            not self.rescale or self.selects_by_rank,
            f"rescale applies where codes are ranked, not to {self.architecture!r}; leave it False",
        )

    @property
    def centred(self) -> bool:
        """Whether the encoder sees x - b_dec (public BatchTopK recipe: all but JumpReLU)."""
        return self.architecture != "jump_relu"

    @property
    def has_encoder_bias(self) -> bool:
        return self.architecture in ("relu", "jump_relu")

    @property
    def selects_by_rank(self) -> bool:
        return self.architecture in ("topk", "batch_topk", "matryoshka", "ortho")

    @property
    def has_auxiliary_loss(self) -> bool:
        return self.selects_by_rank and self.aux_coefficient > 0

    def rows_per_selection(self, batch_size: int) -> int:
        """Rows that share one budget of codes."""
        own = 1 if self.architecture == "topk" else batch_size
        return min(self.group_size or own, batch_size)

    def group_ends(self) -> tuple[int, ...]:
        """Where each nested prefix of latents ends; one prefix unless Matryoshka."""
        if self.architecture != "matryoshka":
            return (self.n_latents,)
        total, ends = 0.0, []
        for fraction in self.fractions:
            total += fraction
            ends.append(round(total * self.n_latents))
        return tuple(ends)


@dataclass(frozen=True)
class ConstraintSpec(Keyed):
    """What may move during training; a baseline is a constraint on the same SAE (paper, Sec. 4.1).

    ``tau``: least cosine to its start that a soft-frozen decoder row keeps. ``init``: rows uniform on the sphere
    (``iso``), normalised Gaussian with the data's covariance (``cov``), or the true features (``truth``). ``tied``: the
    encoder starts parallel to the decoder. ``oracle``: the true dictionary as a frozen decoder. ``pca``, ``neurons``:
    encoder and decoder are the data's principal components or the standard basis, each with its opposite.
    """

    name: str = "free"
    tau: float = 0.8
    init: str = "iso"
    tied: bool = True

    def __post_init__(self) -> None:
        settle_types(self)
        one_of("constraint", self.name, CONSTRAINTS)
        one_of("init", self.init, INITS)
        require(0 <= self.tau < 1, f"tau={self.tau} must lie in [0, 1); for tau=1 use frozen_decoder")
        require(
            self.name != "pca" or self.init == "cov",
            f"constraint='pca' is made of the data's covariance, not init={self.init!r}; set init='cov'",
        )

    @property
    def trains_encoder(self) -> bool:
        return self.name in ("free", "soft_frozen_decoder", "frozen_decoder", "oracle")

    @property
    def trains_decoder(self) -> bool:
        return self.name in ("free", "soft_frozen_decoder", "frozen_encoder")

    @property
    def trains_anything(self) -> bool:
        return self.name != "untrained" and self.name not in DICTIONARIES


@dataclass(frozen=True)
class TrainingSpec(Keyed):
    """Optimisation. Adam, constant learning rate, no warm-up; betas of the public BatchTopK recipe."""

    steps: int = 20_000
    batch_size: int = 2048
    learning_rate: float = 3e-3
    beta1: float = 0.9
    beta2: float = 0.99
    decay: float = 0.0  # last share of the steps over which the learning rate falls linearly to zero
    seed: int = 0

    def __post_init__(self) -> None:
        settle_types(self)
        require(self.steps >= 0, f"steps={self.steps} must not be negative")
        require(self.batch_size >= 1, f"batch_size={self.batch_size} must be at least 1")
        require(self.learning_rate > 0, f"learning_rate={self.learning_rate} must be positive")
        require(
            0 <= self.beta1 < 1 and 0 <= self.beta2 < 1,
            f"betas=({self.beta1}, {self.beta2}) must lie in [0, 1)",
        )
        require(0 <= self.decay <= 1, f"decay={self.decay} must lie in [0, 1]")
        require(
            0 <= self.seed < 128,
            f"seed={self.seed} must lie between 0 and 127, which have streams of their own",
        )

    def rate_at(self, step: int) -> float:
        """Learning rate of the step with this index (the first is 0)."""
        tail = self.decay * self.steps
        return self.learning_rate * min(1.0, (self.steps - step) / tail) if tail else self.learning_rate


@dataclass(frozen=True)
class RunSpec(Keyed):
    """One trained SAE: data, architecture, constraint, optimisation."""

    sae: SAESpec
    source: SourceSpec | ActivationSpec = field(default_factory=SourceSpec)
    constraint: ConstraintSpec = field(default_factory=ConstraintSpec)
    training: TrainingSpec = field(default_factory=TrainingSpec)

    def __post_init__(self) -> None:
        require(
            self.sae.d_model == self.source.d_model,
            f"sae.d_model={self.sae.d_model} differs from source.d_model={self.source.d_model}; set them equal",
        )
        if self.constraint.name in DICTIONARIES:
            name, twice = self.constraint.name, 2 * self.sae.d_model
            require(
                self.sae.architecture == "topk",
                f"constraint={name!r} keeps the largest coefficients of each row; set architecture='topk', "
                f"not {self.sae.architecture!r}",
            )
            require(
                self.sae.n_latents == twice,
                f"constraint={name!r} has a latent and its opposite for each of d_model={self.sae.d_model} directions; "
                f"set n_latents={twice}, not {self.sae.n_latents}",
            )
        needs_truth = self.constraint.name == "oracle" or self.constraint.init == "truth"
        if needs_truth:
            known = getattr(self.source, "n_features", None)
            require(known is not None, f"the oracle and init='truth' need known features; {self.source.name} has none")
            require(
                self.sae.n_latents == known,
                f"the oracle and init='truth' need n_latents={self.sae.n_latents} equal to n_features={known}",
            )

    def settings(self) -> str:
        """What differs from the headline runs, for the ledger: ``name=value;...`` without the ledger's own columns."""
        columns = {"source.probability", "source.seed", "sae.l0", "training.seed", "training.steps"}
        columns |= {"constraint.name", "constraint.init"}
        if getattr(self.source, "seed", self.training.seed) != self.training.seed:
            columns.discard("source.seed")
        return ";".join(f"{k}={v}" for k, v in sorted(self.differences().items()) if k not in columns)


def from_dict(data: dict[str, typing.Any]) -> RunSpec:
    """The RunSpec that ``as_dict`` described; unknown fields are refused."""

    def make(cls: type, values: dict[str, typing.Any]) -> typing.Any:
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        require(not unknown, f"{cls.__name__} has no field {unknown}; it has {sorted(known)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    require(isinstance(data, dict), f"a run is a table of its parts, not a {type(data).__name__}")
    source = ActivationSpec if "model" in data.get("source", {}) else SourceSpec
    parts = {"sae": SAESpec, "source": source, "constraint": ConstraintSpec, "training": TrainingSpec}
    unknown = sorted(set(data) - set(parts))
    require(not unknown, f"a run has no part {unknown}; it has {sorted(parts)}")
    return RunSpec(**{name: make(cls, data[name]) for name, cls in parts.items() if name in data})
