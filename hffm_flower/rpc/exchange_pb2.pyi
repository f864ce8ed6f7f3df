from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DOWN: _ClassVar[Phase]
    UP: _ClassVar[Phase]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACCEPTED: _ClassVar[Verdict]
    DUPLICATE: _ClassVar[Verdict]
    NOT_READY: _ClassVar[Verdict]
    LATE: _ClassVar[Verdict]
    UNEXPECTED: _ClassVar[Verdict]
    WRONG_PROTOCOL: _ClassVar[Verdict]
    WRONG_RUN: _ClassVar[Verdict]
    WRONG_ROUND: _ClassVar[Verdict]
    UNAUTHORISED: _ClassVar[Verdict]
    MALFORMED: _ClassVar[Verdict]
    UNKNOWN_MODULE: _ClassVar[Verdict]
    OVERWEIGHT: _ClassVar[Verdict]
    OVERSIZE: _ClassVar[Verdict]
    TRUNCATED: _ClassVar[Verdict]
    CHECKSUM: _ClassVar[Verdict]
DOWN: Phase
UP: Phase
ACCEPTED: Verdict
DUPLICATE: Verdict
NOT_READY: Verdict
LATE: Verdict
UNEXPECTED: Verdict
WRONG_PROTOCOL: Verdict
WRONG_RUN: Verdict
WRONG_ROUND: Verdict
UNAUTHORISED: Verdict
MALFORMED: Verdict
UNKNOWN_MODULE: Verdict
OVERWEIGHT: Verdict
OVERSIZE: Verdict
TRUNCATED: Verdict
CHECKSUM: Verdict

class Chunk(_message.Message):
    __slots__ = ("opening", "data")
    OPENING_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    opening: Opening
    data: bytes
    def __init__(self, opening: _Optional[_Union[Opening, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Opening(_message.Message):
    __slots__ = ("header", "seal")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    seal: bytes
    def __init__(self, header: _Optional[bytes] = ..., seal: _Optional[bytes] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("protocol", "run", "t", "phase", "segment", "step", "src", "dst", "size", "nonce", "tag", "parcels")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    T_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SRC_FIELD_NUMBER: _ClassVar[int]
    DST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    PARCELS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    run: int
    t: int
    phase: Phase
    segment: int
    step: int
    src: int
    dst: int
    size: int
    nonce: bytes
    tag: bytes
    parcels: _containers.RepeatedCompositeFieldContainer[Parcel]
    def __init__(self, protocol: _Optional[int] = ..., run: _Optional[int] = ..., t: _Optional[int] = ..., phase: _Optional[_Union[Phase, str]] = ..., segment: _Optional[int] = ..., step: _Optional[int] = ..., src: _Optional[int] = ..., dst: _Optional[int] = ..., size: _Optional[int] = ..., nonce: _Optional[bytes] = ..., tag: _Optional[bytes] = ..., parcels: _Optional[_Iterable[_Union[Parcel, _Mapping]]] = ...) -> None: ...

class Parcel(_message.Message):
    __slots__ = ("size", "intact", "modules")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    INTACT_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    size: int
    intact: bool
    modules: _containers.RepeatedCompositeFieldContainer[Module]
    def __init__(self, size: _Optional[int] = ..., intact: bool = ..., modules: _Optional[_Iterable[_Union[Module, _Mapping]]] = ...) -> None: ...

class Module(_message.Message):
    __slots__ = ("key", "mass", "devices", "masses")
    KEY_FIELD_NUMBER: _ClassVar[int]
    MASS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    MASSES_FIELD_NUMBER: _ClassVar[int]
    key: str
    mass: float
    devices: _containers.RepeatedScalarFieldContainer[int]
    masses: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, key: _Optional[str] = ..., mass: _Optional[float] = ..., devices: _Optional[_Iterable[int]] = ..., masses: _Optional[_Iterable[float]] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("verdict", "detail")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    detail: str
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., detail: _Optional[str] = ...) -> None: ...
