"""Device-to-device plans inside a cluster: made, played, and settled by the edge."""

from hffm_flower.d2d.cluster import Cluster
from hffm_flower.d2d.gathering import Gathering
from hffm_flower.d2d.parcel import Parcel, join
from hffm_flower.d2d.plan import EDGE, Delivery, PeerStep, Plan
from hffm_flower.d2d.plans import (
    FORWARDING,
    PLANS,
    PlanOptions,
    check_summable,
    make_plan,
    relay_modules,
)
from hffm_flower.d2d.play import (
    Fault,
    Played,
    Sent,
    incoming,
    mixed,
    outgoing,
    play,
    upload_of,
    uploads_of,
)
from hffm_flower.d2d.settle import Settled, settle
from hffm_flower.d2d.trees import HEADS, Candidate
from hffm_flower.d2d.wire import plan_from_json, plan_to_json

__all__ = [
    "EDGE",
    "FORWARDING",
    "HEADS",
    "PLANS",
    "Candidate",
    "Cluster",
    "Delivery",
    "Fault",
    "Gathering",
    "Parcel",
    "PeerStep",
    "Plan",
    "PlanOptions",
    "Played",
    "Sent",
    "Settled",
    "check_summable",
    "incoming",
    "join",
    "make_plan",
    "mixed",
    "outgoing",
    "plan_from_json",
    "plan_to_json",
    "play",
    "relay_modules",
    "settle",
    "upload_of",
    "uploads_of",
]
