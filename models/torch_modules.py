"""Modules for `Torch`: ready ones, and how to bring one's own. Each is settings, from which a module is built."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import DeclarationError
from .base import Configured, check_whole, register

# Letters: B rows, N numeric features, K categories, D numbers of an embedding, O outputs, F = 2 N + K D.


class Inputs(NamedTuple):
    """What a module is built for."""

    numeric: int  # columns of its first argument, 2 N: values, then 1 where the value is missing
    categories: int  # K
    dim: int  # D
    outputs: int  # O


class TorchModule(Configured):
    """Settings of a module: a registered dataclass with `build`.

        @register
        @dataclass(eq=False)
        class Wide(TorchModule):
            width: int = 32

            def build(self, inputs: Inputs) -> nn.Module:
                return WideNet(inputs.numeric + inputs.categories * inputs.dim, self.width, inputs.outputs)

    The module is called with (numeric float32 (B, 2 N), categories float32 (B, K, D)) and returns the raw scores,
    float32 (B, O): log-odds, one number for each class, or values. numeric holds the values, 0 where one is missing,
    and then for each 1 where it is missing, else 0; categories their embeddings, 0 where one is missing. Both are in
    the order of the features' names. No row may depend on another but while it learns (batch normalisation).
    Parameters are float32; nothing random is drawn in `forward` (dropout), or a replay would not learn the same.

    A class may say `steady = True` for itself, if its modules do the same whether they learn or predict, which spares
    them the calls of train() and eval().
    """

    def embedding_width(self, dim: int, outputs: int) -> int:
        """How many numbers of a category the module takes, where the embeddings are declared with `dim`."""
        return dim

    def build(self, inputs: Inputs) -> nn.Module:
        """A new module. What it draws for its parameters comes from a generator with the declared seed."""
        raise NotImplementedError


class Imported(TorchModule):
    """A module of your own: `Imported("package.nets:Towers", width=32)` calls Towers(inputs, width=32).

    path      "module:name" of a class or function that can be imported wherever the pipeline runs; it gets `Inputs` and
              the settings, and returns an nn.Module that does as `TorchModule` says
    settings  JSON-able: numbers, texts, True, False, None, and lists of these

    Raises DeclarationError for a path that does not lead to anything callable.
    """

    def __init__(self, path: str, **settings: Any) -> None:
        self.path, self.settings = path, settings
        if not isinstance(path, str) or path.count(":") != 1:
            raise DeclarationError(f'Imported: expected a path such as "package.nets:Towers", got {path!r}')
        for name, value in settings.items():
            if name in ("name", "parts") or isinstance(value, dict) or not _is_json(value):
                raise DeclarationError(
                    f"Imported({path!r}, {name}=): expected a number, a text, True, False, None or a list of these "
                    f'under a name other than "name" and "parts", got {value!r}'
                )
        self.factory()

    def __repr__(self) -> str:
        return f"Imported({', '.join([repr(self.path), *(f'{k}={v!r}' for k, v in self.settings.items())])})"

    def config(self) -> dict[str, Any]:
        return {"name": "Imported", "path": self.path} | self.settings

    def factory(self) -> Any:
        """What the path leads to."""
        module, name = self.path.split(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise DeclarationError(
                f"Imported({self.path!r}): {error}; is the file beside the pipeline's, or its package installed?"
            ) from error
        if not callable(found):
            raise DeclarationError(f"Imported({self.path!r}): expected a class or function, got {found!r}")
        return found

    def build(self, inputs: Inputs) -> nn.Module:
        return self.factory()(inputs, **self.settings)


register(Imported)


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


# --- ready modules. Their last layer begins at 0, so that a cold model predicts the base rate.


class _Layers(nn.Sequential):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: Sequence[int]) -> None:
        widths = [inputs, *hidden]
        layers = [[nn.Linear(a, b), nn.ReLU()] for a, b in zip(widths, widths[1:], strict=False)]
        super().__init__(*(part for layer in layers for part in layer))
        self.width = widths[-1]


def _last(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _joined(numeric: Tensor, categories: Tensor) -> Tensor:
    """(B, 2 N), (B, K, D) -> (B, F)"""
    return torch.cat((numeric, categories.flatten(1)), 1) if categories.shape[1] else numeric


class MLPNet(nn.Module):
    """Layers over all that is known of a row."""

    def __init__(self, inputs: Inputs, hidden: Sequence[int]) -> None:
        super().__init__()
        self.layers = _Layers(inputs.numeric + inputs.categories * inputs.dim, hidden)
        self.last = _last(self.layers.width, inputs.outputs)

    def forward(self, numeric: Tensor, categories: Tensor) -> Tensor:
        return self.last(self.layers(_joined(numeric, categories)))


class CrossNet(nn.Module):
    """Cross layers: x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, of x float32 (B, F)."""

    def __init__(self, width: int, layers: int, rank: int | None) -> None:
        super().__init__()
        self.into = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in range(layers if rank else 0))
        self.out = nn.ModuleList(nn.Linear(rank or width, width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        first = x
        for i, out in enumerate(self.out):
            x = torch.addcmul(x, first, out(self.into[i](x) if self.into else x))
        return x


class DCNNet(nn.Module):
    """Cross layers and deep layers side by side."""

    def __init__(self, inputs: Inputs, cross: int, hidden: Sequence[int], rank: int | None) -> None:
        super().__init__()
        width = inputs.numeric + inputs.categories * inputs.dim
        self.cross, self.deep = CrossNet(width, cross, rank), _Layers(width, hidden)
        self.last = _last(width + self.deep.width, inputs.outputs)

    def forward(self, numeric: Tensor, categories: Tensor) -> Tensor:
        x = _joined(numeric, categories)
        return self.last(torch.cat((self.cross(x), self.deep(x)), 1))


class DeepFMNet(nn.Module):
    """A weight for each feature, an inner product for each pair of them, and deep layers, added up."""

    def __init__(self, inputs: Inputs, hidden: Sequence[int]) -> None:
        super().__init__()
        self.dim = inputs.dim - inputs.outputs
        self.vectors = nn.Parameter(torch.empty(inputs.numeric, self.dim).uniform_(-0.01, 0.01))
        self.linear = nn.Parameter(torch.zeros(inputs.numeric, inputs.outputs))
        self.pairs = nn.Parameter(torch.ones(inputs.outputs))  # how much the sum over pairs counts in each output
        self.deep = _Layers(inputs.numeric + inputs.categories * self.dim, hidden)
        self.last = _last(self.deep.width, inputs.outputs)

    def forward(self, numeric: Tensor, categories: Tensor) -> Tensor:
        fields, weights = categories[..., : self.dim], categories[..., self.dim :]  # (B, K, D), (B, K, O)
        total = numeric @ self.vectors + fields.sum(1)  # (B, D)
        squares = numeric.square() @ self.vectors.square() + fields.square().sum(1)
        pairs = (total.square() - squares).sum(1, keepdim=True) / 2  # of all pairs i < j: <v_i, v_j> x_i x_j
        deep = self.last(self.deep(_joined(numeric, fields)))
        return deep + numeric @ self.linear + weights.sum(1) + pairs * self.pairs


def _check_widths(what: str, hidden: Any) -> list[int]:
    if not isinstance(hidden, list | tuple) or not all(isinstance(h, int) and 0 < h <= 1 << 16 for h in hidden):
        raise DeclarationError(f"{what}: expected the widths of the layers, such as [64, 32], got {hidden!r}")
    return list(hidden)


@register
@dataclass(eq=False)
class MLP(TorchModule):
    """Linear layers with ReLU over numbers and embeddings, then a linear one to the raw scores.

    hidden  widths of the layers
    """

    steady: ClassVar[bool] = True

    hidden: Sequence[int] = (64, 32)

    def __post_init__(self) -> None:
        self.hidden = _check_widths("MLP(hidden=)", self.hidden)

    def build(self, inputs: Inputs) -> nn.Module:
        return MLPNet(inputs, self.hidden)


@register
@dataclass(eq=False)
class DCN(TorchModule):
    """Deep and cross network, version 2: cross layers multiply features, deep ones stand beside them.

    cross   cross layers; features are multiplied up to cross + 1 at a time
    hidden  widths of the deep layers
    rank    None: whole matrices (F, F); a number: products of (F, rank) and (rank, F), for wide inputs

    Source: Wang et al. (2021), DCN V2: improved deep and cross network; the parallel structure.
    """

    steady: ClassVar[bool] = True

    cross: int = 2
    hidden: Sequence[int] = (64, 32)
    _: KW_ONLY
    rank: int | None = None

    def __post_init__(self) -> None:
        self.hidden = _check_widths("DCN(hidden=)", self.hidden)
        check_whole("DCN(cross=)", self.cross, 0)
        if self.rank is not None:
            check_whole("DCN(rank=)", self.rank, 1)

    def build(self, inputs: Inputs) -> nn.Module:
        return DCNNet(inputs, self.cross, self.hidden, self.rank)


@register
@dataclass(eq=False)
class DeepFM(TorchModule):
    """A factorization machine and deep layers over the same embeddings.

    hidden  widths of the deep layers

    Takes one number more of each category and output: its weight in the linear part. Of several outputs each has its
    own linear part and deep scores, and a factor for the pairs, which they share.
    Source: Guo et al. (2017), DeepFM: a factorization-machine based neural network.
    """

    steady: ClassVar[bool] = True

    hidden: Sequence[int] = (64, 32)

    def __post_init__(self) -> None:
        self.hidden = _check_widths("DeepFM(hidden=)", self.hidden)

    def embedding_width(self, dim: int, outputs: int) -> int:
        return dim + outputs

    def build(self, inputs: Inputs) -> nn.Module:
        return DeepFMNet(inputs, self.hidden)
