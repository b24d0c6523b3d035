"""The two modulators as modules, and the table they ask for rows."""

from retoken.nn.context import Fetch, ForwardContext, RowSource
from retoken.nn.index import NgramIndex
from retoken.nn.kernels import Kernels
from retoken.nn.landing import Landing
from retoken.nn.modulator import Modulator
from retoken.nn.mort import MoRT
from retoken.nn.retoken import ReToken
from retoken.nn.stack import ModulatorStack, index_for
from retoken.nn.table import Fetched, Rows, TableFactory, TokenTable

__all__ = [
    "Fetch",
    "Fetched",
    "ForwardContext",
    "Kernels",
    "Landing",
    "MoRT",
    "Modulator",
    "ModulatorStack",
    "NgramIndex",
    "ReToken",
    "RowSource",
    "Rows",
    "TableFactory",
    "TokenTable",
    "index_for",
]
