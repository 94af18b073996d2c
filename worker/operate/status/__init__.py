"""How things stand, at a glance: `look.py` reads both servers, `attention.py` judges."""

from worker.operate.status.attention import Attention
from worker.operate.status.facts import (
    BrokerStatus,
    DatabaseStatus,
    PartitionStatus,
    QueueStatus,
    WorkerStatus,
)
from worker.operate.status.look import Status, look

__all__ = [
    "Attention",
    "BrokerStatus",
    "DatabaseStatus",
    "PartitionStatus",
    "QueueStatus",
    "Status",
    "WorkerStatus",
    "look",
]
