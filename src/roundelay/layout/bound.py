"""A module that lives in byte buffers.

``Layout.bind(module)`` places each of its tensors on a 64-byte boundary, as torch would have allocated it. The boundary
is not a nicety: matrix-vector products give other last bits from a misaligned weight, and one client must equal a plain
training loop to the bit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from roundelay.errors import LayoutError
from roundelay.layout.specs import Kind, Scope, Spec, Vectors, digest_of

if TYPE_CHECKING:  # a layout makes bound modules, and needs them first
    from roundelay.layout.layout import Layout

ALIGNMENT = 64


class Bound:
    """A module whose tensors are views of two aligned buffers, one of them for the parameters that are shared. Reading
    gives vectors, loading takes them.

    ``parameters`` are the module's own that are not frozen, each once, in the layout's order. ``load``, ``params`` and
    ``buffers`` are of what is shared; ``load_local`` and ``local`` of what stays on the client. What is frozen stays in
    the memory that the module has it in, such as the pages of a file, unless that is misaligned or on another device.
    """

    def __init__(self, layout: "Layout", module: nn.Module, device: torch.device) -> None:
        self.layout, self.module, self.device = layout, module, device
        self._views: dict[Kind, list[Tensor]] = {kind: [] for kind in Kind}
        self._local: dict[Kind, list[Tensor]] = {kind: [] for kind in Kind}
        self._nothing = {kind: torch.empty(0, dtype=torch.int64 if kind is Kind.INTEGER_BUFFER else layout.dtype,
                                           device=device) for kind in Kind}  # fmt: skip
        self._whole: dict[
            Kind, Tensor | None
        ] = {}  # the kind's vector itself, where its views have no gap between them
        self.parameters: list[nn.Parameter] = []
        self._frozen: dict[str, tuple[Tensor, int]] = {}  # values, and how often they were written
        self._place(module)
        self._grad: Tensor | None = None
        self._away = False

    def _place(self, module: nn.Module) -> None:
        placed = [spec for spec in self.layout.specs if spec.scope is not Scope.FROZEN]
        offsets, sizes = list[int](), {True: 0, False: 0}
        for spec in placed:
            offsets.append(sizes[_is_shared(spec)])
            sizes[_is_shared(spec)] += -(-spec.numel * spec.dtype.itemsize // ALIGNMENT) * ALIGNMENT
        storages = {shared: torch.zeros(size, dtype=torch.uint8, device=self.device) for shared, size in sizes.items()}
        state, owners = module.state_dict(keep_vars=True), dict(module.named_modules(remove_duplicate=False))
        for spec in self.layout.frozen:
            self._frozen[spec.name] = _settled(state[spec.name], self.device)
        for spec, offset in zip(placed, offsets, strict=True):
            storage = storages[_is_shared(spec)]
            flat = storage[offset : offset + spec.numel * spec.dtype.itemsize].view(spec.dtype)
            view, tensor = flat.view(spec.shape), state[spec.name]
            view.copy_(tensor.detach())
            (self._local if spec.scope is Scope.LOCAL else self._views)[spec.kind].append(flat)
            if isinstance(tensor, nn.Parameter):
                tensor.data = view
            else:
                buffer = view.data  # counts its own changes: else one layer's statistics would spoil another's backward
                for name in (spec.name, *spec.aliases):
                    owner, _, leaf = name.rpartition(".")
                    owners[owner]._buffers[leaf] = buffer
        shared, local = (self.layout.of_kind(Kind.PARAMETER, scope) for scope in (Scope.SHARED, Scope.LOCAL))
        self.parameters = [state[spec.name] for spec in (*shared, *local)]
        self._num_shared = len(shared)
        for kind in Kind:
            specs = self.layout.of_kind(kind)
            dtype = torch.int64 if kind is Kind.INTEGER_BUFFER else self.layout.dtype
            gapless = all(s.numel * s.dtype.itemsize % ALIGNMENT == 0 for s in specs[:-1])
            if specs and gapless and all(s.dtype is dtype for s in specs):
                start, storage = offsets[placed.index(specs[0])], storages[_is_shared(specs[0])]
                self._whole[kind] = storage[start : start + self.layout.length(kind) * dtype.itemsize].view(dtype)
            else:
                self._whole[kind] = None

    def put_away(self) -> None:
        """Give back the memory of the parameters that are shared, until they are loaded again: they are undefined."""
        self._away, self._whole[Kind.PARAMETER], self._views[Kind.PARAMETER] = True, None, []
        for parameter in self.parameters[: self._num_shared]:
            parameter.grad, parameter.data = None, parameter.data.new_zeros(1).expand(parameter.shape)

    def load(self, vectors: Vectors) -> None:
        self.load_params(vectors.params)
        self.load_buffers(vectors.buffers, vectors.integers)

    def load_params(self, params: Tensor) -> None:
        if self._away:
            self.renew()
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

    def frozen(self) -> dict[str, Tensor]:
        """Return what is frozen under every name that it has, for a state dict; the module's own memory."""
        return {name: self._frozen[spec.name][0] for spec in self.layout.frozen for name in (spec.name, *spec.aliases)}

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

        Raises:
            LayoutError: a tensor is gone or has another shape, or a frozen one was changed.
        """
        current = self.module.state_dict(keep_vars=True)
        for spec in self.layout.frozen:
            self._check_frozen(spec, current.get(spec.name))
        for kind in Kind:
            for spec, view in zip(
                [*self.layout.of_kind(kind), *self.layout.of_kind(kind, Scope.LOCAL)],
                [*self._views[kind], *self._local[kind]],
                strict=True,
            ):
                if spec.name not in current or tuple(current[spec.name].shape) != spec.shape:
                    raise LayoutError(
                        f"local training changed the model: tensor {spec.name!r} is gone or has another shape"
                    )
                if current[spec.name].data_ptr() != view.data_ptr():
                    self.renew()
                    return

    def require_frozen(self, state: Mapping[str, Tensor]) -> None:
        """Raise a LayoutError that names a frozen tensor of which ``state`` has other values."""
        for spec in self.layout.frozen:
            values, there = self._frozen[spec.name][0], state.get(spec.name)
            if there is not None and not torch.equal(there.to(values), values):
                raise _changed(spec.name)

    def _check_frozen(self, spec: Spec, now: Tensor | None) -> None:
        """Look at the values only where something was written or put in their place: they may be many."""
        values, version = self._frozen[spec.name]
        if now is not None and not now.requires_grad:
            if now.data_ptr() == values.data_ptr() and now._version == version:
                return
            if digest_of(now) == spec.digest:
                self._frozen[spec.name] = _settled(now, self.device)
                return
        raise _changed(spec.name)

    def renew(self) -> None:
        """Move on to a new byte buffer with the same values; vectors read from the old one stay as they are."""
        self._away = False
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


def _is_shared(spec: Spec) -> bool:
    return spec.kind is Kind.PARAMETER and spec.scope is Scope.SHARED


def _changed(name: str) -> LayoutError:
    return LayoutError(
        f"local training changed {name!r}, which is frozen (requires_grad is False in what the model's factory "
        "returns) and stays as it is on every side; to train it, leave it unfrozen there"
    )


def _settled(parameter: Tensor, device: torch.device) -> tuple[Tensor, int]:
    """Move a frozen parameter to ``device`` where it is not there, onto a boundary where it is not on one."""
    values = parameter.detach().to(device).contiguous()
    if values.data_ptr() % ALIGNMENT:
        values = values.clone()
    if values.data_ptr() != parameter.data_ptr():
        parameter.data = values
    return values, parameter._version
