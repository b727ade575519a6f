"""A model as vectors: ``Layout`` turns a module's state into contiguous 1-D tensors and back, by name, never by
position.

Three vectors hold a model: its *parameters*, its *float buffers* (BatchNorm statistics), its *integer buffers*
(counters). Algorithms see parameters only. Named tensors appear at the edges: user code and files.

``Layout.bind(module)`` places a module's tensors in one byte buffer, each on a 64-byte boundary, as torch would have
allocated it. The boundary is not a nicety: matrix-vector products give other last bits from a misaligned weight, and
one client must equal a plain training loop to the bit.
"""

import fnmatch
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import prod

import torch
from torch import Tensor, nn

from roundelay.errors import LayoutError

ALIGNMENT = 64
BATCH_NORM = "@batch_norm"
"""In ``keep_local``: weights, biases, statistics and counters of every BatchNorm layer."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Kind(Enum):
    PARAMETER = "parameter"
    FLOAT_BUFFER = "float buffer"
    INTEGER_BUFFER = "integer buffer"


@dataclass(frozen=True, slots=True)
class Spec:
    """One tensor of a model.

    ``aliases`` are further names of the same tensor (tied weights); a ``local`` tensor stays on its client.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: Kind
    aliases: tuple[str, ...] = ()
    local: bool = False

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Vectors:
    """A model's values: ``params`` and ``buffers`` in the layout's float dtype, ``integers`` int64; each of shape
    (length,).
    """

    params: Tensor
    buffers: Tensor
    integers: Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Names, shapes and dtypes of a model: parameters first, then float buffers, then integer buffers.

    Vectors hold what is shared; what is local to each client has vectors of its own, apart from those that travel.
    ``dtype`` is the dtype of the float vectors: float32, or float64 where the model has a float64 tensor. Half and
    bfloat16 values are exact in float32, so folding loses nothing of them.
    """

    specs: tuple[Spec, ...]
    dtype: torch.dtype

    @staticmethod
    def of(module: nn.Module, keep_local: Sequence[str] = ()) -> "Layout":
        """Describe ``module``. Non-persistent buffers are constants of the code and are left out.

        ``keep_local`` says which tensors stay on each client: patterns over names, "head.*", or ``BATCH_NORM`` for all
        of every BatchNorm layer.

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
        specs = [
            Spec(
                first,
                tuple(tensors[i].shape),
                tensors[i].dtype,
                _kind(tensors[i], i in parameters),
                tuple(rest),
                not local.isdisjoint([first, *rest]),
            )
            for i, (first, *rest) in names.items()
        ]
        if not any(s.kind is Kind.PARAMETER for s in specs):
            raise LayoutError(f"{type(module).__name__} has no parameters: there is nothing to train or average")
        if all(s.local for s in specs if s.kind is Kind.PARAMETER):
            raise LayoutError(f"keep_local = {list(keep_local)} leaves {type(module).__name__} nothing to share")
        # stable: the module's own order within a kind, what is shared before what is local
        specs.sort(key=lambda spec: (list(Kind).index(spec.kind), spec.local))
        wide = any(s.dtype is torch.float64 for s in specs)
        return Layout(tuple(specs), torch.float64 if wide else torch.float32)

    def of_kind(self, kind: Kind, local: bool = False) -> tuple[Spec, ...]:
        return tuple(spec for spec in self.specs if spec.kind is kind and spec.local is local)

    def length(self, kind: Kind, local: bool = False) -> int:
        return sum(spec.numel for spec in self.of_kind(kind, local))

    @property
    def local_names(self) -> tuple[str, ...]:
        """The names of the tensors that stay on each client."""
        return tuple(spec.name for spec in self.specs if spec.local)

    @property
    def num_params(self) -> int:
        return self.length(Kind.PARAMETER)

    def flatten(self, state: Mapping[str, Tensor], local: bool = False) -> Vectors:
        """Copy named tensors into vectors: those that are shared, or those that are local; the others take no part.

        Raises:
            LayoutError: a tensor is missing, unknown, or of another shape; names it.
        """
        known = {name for spec in self.specs for name in (spec.name, *spec.aliases)}
        for name in state:
            if name not in known:
                raise LayoutError(f"tensor {name!r} is not part of this model; it has {_listed(sorted(known))}")
        for spec in self.specs:
            if spec.local is not local:
                continue
            if spec.name not in state:
                raise LayoutError(f"tensor {spec.name!r} of shape {spec.shape} is missing")
            got = tuple(state[spec.name].shape)
            if got != spec.shape:
                raise LayoutError(f"tensor {spec.name!r} has shape {got}, the model has {spec.shape}")

        def joined(kind: Kind, dtype: torch.dtype) -> Tensor:
            parts = [state[s.name].detach().to("cpu", dtype).reshape(-1) for s in self.of_kind(kind, local)]
            return torch.cat(parts) if parts else torch.empty(0, dtype=dtype)

        return Vectors(
            joined(Kind.PARAMETER, self.dtype),
            joined(Kind.FLOAT_BUFFER, self.dtype),
            joined(Kind.INTEGER_BUFFER, torch.int64),
        )

    def unflatten(self, vectors: Vectors, local: bool = False) -> dict[str, Tensor]:
        """Return named copies in the model's own dtypes, for ``load_state_dict``; tied tensors under every name.

        ``vectors`` hold what is shared, or what is ``local``; ``load_state_dict(..., strict=False)`` leaves the other
        tensors as they are.
        """
        state: dict[str, Tensor] = {}
        for spec, part in self._parts(vectors, local):
            value = part.to(spec.dtype, copy=True).view(spec.shape)
            state.update(dict.fromkeys((spec.name, *spec.aliases), value))
        return state

    def sha256(self, vectors: Vectors) -> str:
        """Hash the values in their own dtypes: parameters, float buffers, integers; layout order, little-endian."""
        digest = hashlib.sha256()
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
                a, b = mine[name], theirs[name]
                raise LayoutError(
                    f"{what}: tensor {name!r} is {b.kind.value} {b.dtype} {b.shape}, "
                    f"the model has {a.kind.value} {a.dtype} {a.shape}"
                )
        if self.specs != other.specs:
            raise LayoutError(f"{what} has the same tensors in another order")

    def bind(self, module: nn.Module, device: torch.device | None = None) -> "Bound":
        """Move the tensors of ``module`` into one aligned byte buffer on ``device``; the module's values stay.

        The module belongs to the returned ``Bound`` from then on. Its Parameter objects stay the same ones.
        """
        self.require_same(Layout.of(module, self.local_names), type(module).__name__)
        return Bound(self, module, device or torch.device("cpu"))

    def _parts(self, vectors: Vectors, local: bool = False) -> "list[tuple[Spec, Tensor]]":
        parts: list[tuple[Spec, Tensor]] = []
        for kind, vector in zip(Kind, (vectors.params, vectors.buffers, vectors.integers), strict=True):
            specs, length = self.of_kind(kind, local), self.length(kind, local)
            if vector.shape != (length,):
                raise LayoutError(f"the {kind.value} vector has shape {tuple(vector.shape)}, the model has ({length},)")
            parts.extend(zip(specs, torch.split(vector, [s.numel for s in specs]), strict=True))
        return parts


class Bound:
    """A module whose tensors are views of one aligned buffer. Reading gives vectors, loading takes them.

    ``parameters`` are the module's own, each once, in the layout's order. ``load``, ``params`` and ``buffers`` are of
    what is shared; ``load_local`` and ``local`` of what stays on the client.
    """

    def __init__(self, layout: Layout, module: nn.Module, device: torch.device) -> None:
        self.layout, self.module, self.device = layout, module, device
        self._views: dict[Kind, list[Tensor]] = {kind: [] for kind in Kind}
        self._local: dict[Kind, list[Tensor]] = {kind: [] for kind in Kind}
        self._nothing = {kind: torch.empty(0, dtype=torch.int64 if kind is Kind.INTEGER_BUFFER else layout.dtype,
                                           device=device) for kind in Kind}  # fmt: skip
        self._whole: dict[
            Kind, Tensor | None
        ] = {}  # the kind's vector itself, where its views have no gap between them
        self.parameters: list[nn.Parameter] = []
        self._place(module)
        self._grad: Tensor | None = None

    def _place(self, module: nn.Module) -> None:
        offsets, at = [], 0
        for spec in self.layout.specs:
            offsets.append(at)
            at += -(-spec.numel * spec.dtype.itemsize // ALIGNMENT) * ALIGNMENT
        storage = torch.zeros(at, dtype=torch.uint8, device=self.device)
        state, owners = module.state_dict(keep_vars=True), dict(module.named_modules(remove_duplicate=False))
        for spec, offset in zip(self.layout.specs, offsets, strict=True):
            flat = storage[offset : offset + spec.numel * spec.dtype.itemsize].view(spec.dtype)
            view, tensor = flat.view(spec.shape), state[spec.name]
            view.copy_(tensor.detach())
            (self._local if spec.local else self._views)[spec.kind].append(flat)
            if isinstance(tensor, nn.Parameter):
                tensor.data = view
            else:
                for name in (spec.name, *spec.aliases):
                    owner, _, leaf = name.rpartition(".")
                    owners[owner]._buffers[leaf] = view
        shared, local = (self.layout.of_kind(Kind.PARAMETER, local) for local in (False, True))
        self.parameters = [state[spec.name] for spec in (*shared, *local)]
        self._num_shared = len(shared)
        for kind in Kind:
            specs = self.layout.of_kind(kind)
            dtype = torch.int64 if kind is Kind.INTEGER_BUFFER else self.layout.dtype
            gapless = all(s.numel * s.dtype.itemsize % ALIGNMENT == 0 for s in specs[:-1])
            if specs and gapless and all(s.dtype is dtype for s in specs):
                start = offsets[self.layout.specs.index(specs[0])]
                self._whole[kind] = storage[start : start + self.layout.length(kind) * dtype.itemsize].view(dtype)
            else:
                self._whole[kind] = None

    def load(self, vectors: Vectors) -> None:
        self.load_params(vectors.params)
        self.load_buffers(vectors.buffers, vectors.integers)

    def load_params(self, params: Tensor) -> None:
        self._load(Kind.PARAMETER, params)

    def load_buffers(self, buffers: Tensor, integers: Tensor) -> None:
        self._load(Kind.FLOAT_BUFFER, buffers)
        self._load(Kind.INTEGER_BUFFER, integers)

    def local(self) -> Vectors:
        """Return copies of what stays on the client."""
        params, buffers, integers = (
            self._joined(kind, self._local[kind]).clone()
            for kind in (Kind.PARAMETER, Kind.FLOAT_BUFFER, Kind.INTEGER_BUFFER)
        )
        return Vectors(params, buffers, integers)

    def load_local(self, vectors: Vectors) -> None:
        parts = zip(Kind, (vectors.params, vectors.buffers, vectors.integers), strict=True)
        for views, vector in ((self._local[kind], vector) for kind, vector in parts):
            if views:
                torch._foreach_copy_(views, vector.split_with_sizes([view.numel() for view in views]))

    def params(self) -> Tensor:
        """Return the parameters as one vector (D,). It may share the module's memory: valid until the next training
        step.
        """
        return self._read(Kind.PARAMETER)

    def buffers(self) -> Tensor:
        return self._read(Kind.FLOAT_BUFFER)

    def integers(self) -> Tensor:
        return self._read(Kind.INTEGER_BUFFER)

    def start_training(self) -> None:
        """Put the module into training mode, without gradients."""
        self.module.train()
        for p in self.parameters:
            p.grad = None

    def correct_gradients(self, correct: Callable[[Tensor, Tensor], None]) -> None:
        """Call ``correct(grad, params)`` on flat vectors (D,) after backward; what it does to ``grad`` in place counts.

        A parameter without a gradient takes part with zeros.
        """
        if self._grad is None:
            self._grad = torch.empty(self.layout.num_params, dtype=self.layout.dtype, device=self.device)
        shared = self.parameters[: self._num_shared]
        views = torch.split(self._grad, [p.numel() for p in shared])
        for view, p in zip(views, shared, strict=True):
            if p.grad is None:
                view.zero_()
            else:
                view.copy_(p.grad.view(-1))
        correct(self._grad, self.params())
        for view, p in zip(views, shared, strict=True):
            p.grad = view.view(p.shape).to(p.dtype)

    def adopt(self) -> None:
        """Take in tensors that user code put in place of the bound ones (``module.to(...)``, ``p.data = ...``), and
        bind again.
        """
        current = self.module.state_dict(keep_vars=True)
        for kind in Kind:
            for spec, view in zip(
                [s for s in self.layout.specs if s.kind is kind], [*self._views[kind], *self._local[kind]], strict=True
            ):
                if spec.name not in current or tuple(current[spec.name].shape) != spec.shape:
                    raise LayoutError(
                        f"local training changed the model: tensor {spec.name!r} is gone or has another shape"
                    )
                if current[spec.name].data_ptr() != view.data_ptr():
                    self.renew()
                    return

    def renew(self) -> None:
        """Move on to a new byte buffer with the same values; vectors read from the old one stay as they are."""
        self._views, self._local = {kind: [] for kind in Kind}, {kind: [] for kind in Kind}
        self._place(self.module)

    def _load(self, kind: Kind, vector: Tensor) -> None:
        whole, views = self._whole[kind], self._views[kind]
        if whole is not None:
            whole.copy_(vector)
        elif views:
            torch._foreach_copy_(views, vector.split_with_sizes([view.numel() for view in views]))

    def _read(self, kind: Kind) -> Tensor:
        whole, views = self._whole[kind], self._views[kind]
        if whole is not None:
            return whole
        return self._joined(kind, views)

    def _joined(self, kind: Kind, views: Sequence[Tensor]) -> Tensor:
        if not views:
            return self._nothing[kind]
        dtype = torch.int64 if kind is Kind.INTEGER_BUFFER else self.layout.dtype
        return torch.cat([v if v.dtype is dtype else v.to(dtype) for v in views])


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


def _kind(tensor: Tensor, is_parameter: bool) -> Kind:
    if tensor.is_floating_point():
        return Kind.PARAMETER if is_parameter else Kind.FLOAT_BUFFER
    return Kind.INTEGER_BUFFER


def _listed(items: Sequence[object], limit: int = 12) -> str:
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown}, ... ({len(items)} in all)"
