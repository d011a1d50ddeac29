"""Preprocessors as the settings that a processor's JSON holds, and back.

A class is found by its name among ours and transformers' image processors and feature extractors,
and nowhere else: the file may be from anyone. Knows no processor and no encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from transformers import FeatureExtractionMixin, ImageProcessingMixin

from clmm import audio_preprocessing, sensor_preprocessing
from clmm.encoders import frames

_TYPES = ("image_processor_type", "feature_extractor_type")
_PLACES = (audio_preprocessing, sensor_preprocessing, frames, transformers)


def restored(saved: Any, *, where: str) -> Any:
    """The preprocessor whose `to_dict` is `saved`; one inside it, such as of frames, too.

    Raises ValueError, with `where`, for what names no such class or does not fit it.
    """
    if not _is_saved(saved):
        raise ValueError(f"{where}: give a preprocessor's settings; got {saved!r}")
    values = {
        key: restored(value, where=f"{where}.{key}") if _is_saved(value) else value
        for key, value in saved.items()
    }
    name = next(values[key] for key in _TYPES if key in values)
    kind = _class(name)
    if kind is None:
        raise ValueError(f"{where}: {name!r} is no image processor and no feature extractor")
    settings = {key: value for key, value in values.items() if key not in _TYPES}
    try:
        return kind.from_dict(settings)
    except TypeError as error:
        raise ValueError(f"{where}: {name}: {error}") from error


def _is_saved(value: Any) -> bool:
    return isinstance(value, Mapping) and any(key in value for key in _TYPES)


def _class(name: Any) -> Any:
    for place in _PLACES:
        found = getattr(place, str(name), None)
        if isinstance(found, type) and issubclass(
            found, (FeatureExtractionMixin, ImageProcessingMixin)
        ):
            return found
    return None
