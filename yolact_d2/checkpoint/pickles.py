"""Pickles of strangers: nothing that they ask for is run, and no more memory is taken than they
are long."""

import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

# What there is in pickles of tensors, arrays and plain values, of all protocols. Not there is what
# makes objects of classes or sets, whose members are hashed.
_OPCODES = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
    BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST
    LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET
    LONG_BINGET GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID
""".split()
# The largest checkpoint of ours, with its optimizer, takes 53000; each takes up to 100 bytes.
_MAX_STEPS = 2_000_000


class Refused(pickle.UnpicklingError):
    """A pickle that asks for something that is not loaded from strangers."""


class PlainDict(dict):
    """In place of an OrderedDict."""

    def build(self, state: Any) -> None:
        """Leave out its attributes."""


class RestrictedUnpickler(pickle._Unpickler):
    """An unpickler that calls nothing but the functions that it is given.

    It is Python's unpickler in Python, because the one in C reserves memory for whatever place in
    its memo a file names, and hashes any key, which for tuples of tuples takes forever.
    """

    def __init__(self, file: BinaryIO, size: int, allowed: dict[str, Callable]):
        """
        Args:
            file: what to read from.
            size: of the file, in bytes.
            allowed: by full name, what is called in place of the functions and classes of those
                names. Everything else is refused. What they return must not be callable, and takes
                the state that the pickle may give it by a method `build`.
        """
        super().__init__(_Reader(file, size), encoding="latin1")
        self._allowed = {"collections.OrderedDict": self._ordered_dict, **allowed}
        self.dispatch = _Steps(type(self))

    def find_class(self, module: str, name: str) -> Callable:
        full_name = f"{module}.{name}"
        if full_name not in self._allowed:
            raise Refused(f"it asks for {full_name}")
        return self._allowed[full_name]

    def load_newobj(self) -> None:
        self.load_reduce()

    def load_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.append(function(*args))

    def load_build(self) -> None:
        state = self.stack.pop()
        self.stack[-1].build(state)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: list) -> None:
        for key, value in zip(items[::2], items[1::2]):
            if not isinstance(key, (str, int, float, bytes, type(None))):
                raise Refused(f"it has a key that is a {type(key).__name__}")
            self.stack[-1][key] = value

    def _ordered_dict(self, pairs=()) -> PlainDict:
        """With the pairs that Python 2 gives, which a file may give many times."""
        self.dispatch.take(len(pairs))
        self.append(PlainDict())
        self._set_items([x for key, value in pairs for x in (key, value)])
        return self.stack.pop()


class _Reader:
    """A file that is not asked for more than it has."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size = file, size
        self.readline = file.readline

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, self._size))


class _Steps:
    """What is done for each opcode, and how often it may still be done."""

    def __init__(self, unpickler: type):
        self._left = _MAX_STEPS
        self._methods = {}
        for name in _OPCODES:
            code = getattr(pickle, name)[0]
            method = pickle._Unpickler.dispatch[code]
            # Those that are overridden have the same name.
            self._methods[code] = getattr(unpickler, method.__name__)
        # Makes as many bytes as the file claims before it reads them.
        self._methods[pickle.BYTEARRAY8[0]] = pickle._Unpickler.load_binbytes8

    def take(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise Refused(f"it takes more than {_MAX_STEPS} steps to read")

    def __getitem__(self, code: int) -> Callable:
        self.take(1)
        if code not in self._methods:
            raise Refused(f"it has the opcode {bytes([code])!r}")
        return self._methods[code]
