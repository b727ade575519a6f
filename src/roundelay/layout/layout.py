"""The layout of a module's state: which tensor lies where in which vector."""

import fnmatch
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from roundelay.errors import LayoutError
from roundelay.layout.bound import Bound
from roundelay.layout.specs import Kind, Scope, Spec, Vectors, digest_of

BATCH_NORM = "@batch_norm"
"""In ``keep_local``: weights, biases, statistics and counters of every BatchNorm layer."""

HALVES = (torch.bfloat16, torch.float16)
"""In this order they stand behind parameters of full precision."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class Layout:
    """Names, shapes and dtypes of a model: parameters first, then float buffers, then integer buffers.

    Vectors hold what is shared; what is local to each client has vectors of its own, apart from those that travel.
    What is frozen is known by its digest only: it is in no vector, and neither travels nor is averaged.
    ``dtype`` is the dtype of the float vectors: float32, or float64 where the model has a float64 tensor. Half and
    bfloat16 values are exact in float32, so folding loses nothing of them; they travel in their own (``travel.py``).
    """

    specs: tuple[Spec, ...]
    dtype: torch.dtype
    num_params: int = field(init=False, repr=False, compare=False)
    """How many values of parameters are shared."""
    stretches: tuple[tuple[torch.dtype, int], ...] = field(init=False, repr=False, compare=False)
    """The dtypes in which the shared parameters travel, with how many each, in the vector's order."""
    has_halves: bool = field(init=False, repr=False, compare=False)
    """Whether any shared parameter is of half precision."""

    def __post_init__(self) -> None:
        """Work out once what is asked for every update."""
        shared = self.of_kind(Kind.PARAMETER)
        sizes = dict[torch.dtype, int]()
        for spec in shared:
            own = spec.dtype if _precision(spec) else self.dtype
            sizes[own] = sizes.get(own, 0) + spec.numel
        object.__setattr__(self, "num_params", sum(sizes.values()))
        object.__setattr__(self, "stretches", tuple(sizes.items()))
        object.__setattr__(self, "has_halves", any(map(_precision, shared)))

    @staticmethod
    def of(module: nn.Module, keep_local: Sequence[str] = ()) -> "Layout":
        """Describe ``module``. Non-persistent buffers are constants of the code and are left out. A float parameter
        that does not require gradients is frozen; buffers are shared, those of frozen layers too.

        ``keep_local`` says which tensors stay on each client: patterns over names, "head.*", or ``BATCH_NORM`` for all
        of every BatchNorm layer. What it names is local, frozen or not.

        Raises:
            LayoutError: a tensor cannot be averaged (complex, quantised, sparse, uninitialised), an entry is no tensor,
            a pattern of ``keep_local`` fits no tensor, or nothing is left to share.
        """
        local = _local_names(module, keep_local)
        parameters = {id(p) for p in module.parameters()}
        names: dict[int, list[str]] = {}
        tensors: dict[int, Tensor] = {}
        for name, value in module.state_dict(keep_vars=True).items():
            _check_tensor(name, value)
            names.setdefault(id(value), []).append(name)
            tensors[id(value)] = value
        specs = []
        for i, (first, *rest) in names.items():
            tensor, kind, scope = tensors[i], _kind(tensors[i], i in parameters), Scope.SHARED
            if not local.isdisjoint([first, *rest]):
                scope = Scope.LOCAL
            elif kind is Kind.PARAMETER and not tensor.requires_grad:
                scope = Scope.FROZEN
            digest = digest_of(tensor) if scope is Scope.FROZEN else ""
            specs.append(Spec(first, tuple(tensor.shape), tensor.dtype, kind, tuple(rest), scope, digest))
        _check_something_is_shared(type(module).__name__, specs, keep_local)
        # stable: the module's own order within a kind, what is shared before what is local before what is frozen, and
        # full precision before halves, so that each dtype is one stretch of the parameters
        specs.sort(key=lambda spec: (list(Kind).index(spec.kind), list(Scope).index(spec.scope), _precision(spec)))
        wide = any(s.dtype is torch.float64 for s in specs)
        return Layout(tuple(specs), torch.float64 if wide else torch.float32)

    def of_kind(self, kind: Kind, scope: Scope = Scope.SHARED) -> tuple[Spec, ...]:
        return tuple(spec for spec in self.specs if spec.kind is kind and spec.scope is scope)

    def length(self, kind: Kind, scope: Scope = Scope.SHARED) -> int:
        return sum(spec.numel for spec in self.of_kind(kind, scope))

    @property
    def local_names(self) -> tuple[str, ...]:
        """The names of the tensors that stay on each client."""
        return tuple(spec.name for spec in self.specs if spec.scope is Scope.LOCAL)

    @property
    def frozen(self) -> tuple[Spec, ...]:
        """The parameters that are not trained."""
        return self.of_kind(Kind.PARAMETER, Scope.FROZEN)

    def flatten(self, state: Mapping[str, Tensor], scope: Scope = Scope.SHARED) -> Vectors:
        """Copy named tensors into vectors: those of one scope; the others take no part.

        Raises:
            LayoutError: a tensor is missing, unknown, or of another shape; names it.
        """
        known = {name for spec in self.specs for name in (spec.name, *spec.aliases)}
        for name in state:
            if name not in known:
                raise LayoutError(f"tensor {name!r} is not part of this model; it has {_listed(sorted(known))}")
        for spec in self.specs:
            if spec.scope is not scope:
                continue
            if spec.name not in state:
                raise LayoutError(f"tensor {spec.name!r} of shape {spec.shape} is missing")
            got = tuple(state[spec.name].shape)
            if got != spec.shape:
                raise LayoutError(f"tensor {spec.name!r} has shape {got}, the model has {spec.shape}")

        def joined(kind: Kind, dtype: torch.dtype) -> Tensor:
            parts = [state[s.name].detach().to("cpu", dtype).reshape(-1) for s in self.of_kind(kind, scope)]
            return torch.cat(parts) if parts else torch.empty(0, dtype=dtype)

        return Vectors(
            joined(Kind.PARAMETER, self.dtype),
            joined(Kind.FLOAT_BUFFER, self.dtype),
            joined(Kind.INTEGER_BUFFER, torch.int64),
        )

    def unflatten(self, vectors: Vectors, scope: Scope = Scope.SHARED, copy: bool = True) -> dict[str, Tensor]:
        """Return named copies in the model's own dtypes, for ``load_state_dict``; tied tensors under every name.
        Without ``copy``, those whose dtype is that of the vectors are views of them, to be read at once.

        ``vectors`` hold what is of one ``scope``; ``load_state_dict(..., strict=False)`` leaves the other tensors as
        they are.
        """
        state: dict[str, Tensor] = {}
        for spec, part in self._parts(vectors, scope):
            value = part.to(spec.dtype, copy=copy).view(spec.shape)
            state.update(dict.fromkeys((spec.name, *spec.aliases), value))
        return state

    def sha256(self, vectors: Vectors) -> str:
        """Hash the values in their own dtypes: parameters, float buffers, integers; layout order, little-endian. Before
        them, the digests of what is frozen.
        """
        digest = hashlib.sha256(b"".join(bytes.fromhex(spec.digest) for spec in self.frozen))
        for spec, part in self._parts(vectors):
            digest.update(part.to(spec.dtype).contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def require_same(self, other: "Layout", what: str) -> None:
        """Raise a LayoutError that names the first tensor in which ``other`` differs from this layout."""
        mine, theirs = ({s.name: s for s in layout.specs} for layout in (self, other))
        for name in {**mine, **theirs}:
            if name not in theirs:
                raise LayoutError(f"{what} lacks tensor {name!r} of shape {mine[name].shape}")
            if name not in mine:
                raise LayoutError(f"{what} has a tensor {name!r} that the model does not have")
            if mine[name] != theirs[name]:
                raise LayoutError(f"{what}: tensor {name!r} {_difference(theirs[name], mine[name])}")
        if self.specs != other.specs:
            raise LayoutError(f"{what} has the same tensors in another order")

    def require_frozen(self, state: Mapping[str, Tensor], what: str) -> None:
        """Raise a LayoutError that names the first frozen tensor which ``state`` has with other values."""
        for spec in self.frozen:
            there = state.get(spec.name)
            if there is not None and digest_of(there.to(spec.dtype)) != spec.digest:
                theirs = replace(spec, digest=digest_of(there.to(spec.dtype)))
                raise LayoutError(f"{what}: tensor {spec.name!r} {_difference(theirs, spec)}")

    def bind(self, module: nn.Module, device: torch.device | None = None) -> "Bound":
        """Move the tensors of ``module`` into one aligned byte buffer on ``device``; the module's values stay.

        The module belongs to the returned ``Bound`` from then on. Its Parameter objects stay the same ones.
        """
        self.require_same(Layout.of(module, self.local_names), type(module).__name__)
        return Bound(self, module, device or torch.device("cpu"))

    def _parts(self, vectors: Vectors, scope: Scope = Scope.SHARED) -> "list[tuple[Spec, Tensor]]":
        parts: list[tuple[Spec, Tensor]] = []
        for kind, vector in zip(Kind, (vectors.params, vectors.buffers, vectors.integers), strict=True):
            specs, length = self.of_kind(kind, scope), self.length(kind, scope)
            if vector.shape != (length,):
                raise LayoutError(f"the {kind.value} vector has shape {tuple(vector.shape)}, the model has ({length},)")
            parts.extend(zip(specs, torch.split(vector, [s.numel for s in specs]), strict=True))
        return parts


def _local_names(module: nn.Module, keep_local: Sequence[str]) -> set[str]:
    names = list(module.state_dict())
    found: set[str] = set()
    for pattern in keep_local:
        if pattern == BATCH_NORM:
            layers = [
                name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)
            ]
            fitting = [name for name in names if name.rpartition(".")[0] in layers]
        else:
            fitting = fnmatch.filter(names, pattern)
        if not fitting:
            raise LayoutError(f"keep_local: {pattern!r} fits no tensor of this model; it has {_listed(names)}")
        found.update(fitting)
    return found


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise LayoutError(f"state entry {name!r} is a {type(value).__name__}; a model's state must consist of tensors")
    if isinstance(value, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
        raise LayoutError(f"tensor {name!r} has no shape yet: run one batch through the lazy module first")
    if value.layout is not torch.strided or value.is_quantized or value.is_complex():
        raise LayoutError(f"tensor {name!r} ({value.dtype}, {value.layout}) cannot be averaged; dense real tensors can")
    if value.is_floating_point() and value.dtype not in FLOATS:
        raise LayoutError(f"tensor {name!r} has dtype {value.dtype}; averaged dtypes are {_listed(FLOATS)}")


def _precision(spec: Spec) -> int:
    """Return 0 for full precision, and which of the ``HALVES`` a parameter is of, from 1 on."""
    return HALVES.index(spec.dtype) + 1 if spec.kind is Kind.PARAMETER and spec.dtype in HALVES else 0


def _check_something_is_shared(model: str, specs: Sequence[Spec], keep_local: Sequence[str]) -> None:
    parameters = [spec for spec in specs if spec.kind is Kind.PARAMETER]
    if not parameters:
        raise LayoutError(f"{model} has no parameters: there is nothing to train or average")
    if any(spec.scope is Scope.SHARED for spec in parameters):
        return
    if all(spec.scope is Scope.FROZEN for spec in parameters):
        raise LayoutError(f"every parameter of {model} is frozen (requires_grad is False): nothing is left to train")
    raise LayoutError(f"keep_local = {list(keep_local)} leaves {model} nothing to share")


def _difference(theirs: Spec, mine: Spec) -> str:
    """Say in what a tensor differs from the one that the model has."""
    alike = (mine.kind, mine.shape, mine.dtype) == (theirs.kind, theirs.shape, theirs.dtype)
    if alike and mine.scope is not theirs.scope:
        return f"is {theirs.scope.value}, in the model it is {mine.scope.value}: requires_grad and keep_local decide"
    if alike and mine.digest != theirs.digest:
        return (f"is frozen and has other values than the model's (SHA-256 {theirs.digest[:12]}, expected "
                f"{mine.digest[:12]}): a frozen tensor does not travel, so the model's factory must give every side "
                "the same one, from the same file or the job's seed")  # fmt: skip
    return (f"is {theirs.kind.value} {theirs.dtype} {theirs.shape}, "
            f"the model has {mine.kind.value} {mine.dtype} {mine.shape}")  # fmt: skip


def _kind(tensor: Tensor, is_parameter: bool) -> Kind:
    if tensor.is_floating_point():
        return Kind.PARAMETER if is_parameter else Kind.FLOAT_BUFFER
    return Kind.INTEGER_BUFFER


def _listed(items: Sequence[object], limit: int = 12) -> str:
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown}, ... ({len(items)} in all)"
