"""Data sets, tasks and their partition over devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hffm_flower.data.dataset import Dataset, DatasetFactory, Item
from hffm_flower.data.digits import Digits
from hffm_flower.data.easyvqa import EasyVqa, EasyVqaBox
from hffm_flower.data.emoji import EmojiVqa
from hffm_flower.data.emoji_names import EmojiCaptions, EmojiNames
from hffm_flower.data.prepared import PreparedTask
from hffm_flower.data.watch import Watch, WatchForecast, WatchRate
from hffm_flower.tasks import TASKS, TaskSpec

__all__ = ["DATASETS", "TASKS", "Dataset", "DatasetFactory", "Item", "TaskSpec"]

DATASETS: Final[Mapping[str, DatasetFactory]] = {
    "digits": Digits,
    "easy-vqa": EasyVqa,
    "easy-vqa-box": EasyVqaBox,
    "emoji-captions": EmojiCaptions,
    "emoji-names": EmojiNames,
    "emoji-vqa": EmojiVqa,
    "prepared": PreparedTask,
    "watch": Watch,
    "watch-forecast": WatchForecast,
    "watch-rate": WatchRate,
}
