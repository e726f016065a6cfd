"""Converts the times of a log, which are UTC, to the time zone of the reader.

Used by ``cli._review_command`` and ``review._report``.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime, timezone
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from otel_connector._units import moment
from otel_connector.review._points import Point, Points


class Zone:
    """A time zone.

    Args:
        name: A name of the IANA database, such as ``Europe/Berlin``.
        argument: The argument or option with the name, for messages.

    Attributes:
        name: The name.
        info: The zone.

    Raises:
        ValueError: There is no such time zone.
    """

    def __init__(self, name: str, argument: str = "timezone") -> None:
        self.name = name
        try:
            self.info = timezone.utc if name == "UTC" else ZoneInfo(name)
        except (ValueError, OSError, ZoneInfoNotFoundError):
            raise ValueError(
                f"{argument} must be a time zone such as Europe/Berlin, America/New_York or UTC, not {name!r}"
            ) from None

    def local(self, time: datetime) -> datetime:
        """Return a time in UTC, without a zone, in this zone, without a zone."""
        return time.replace(tzinfo=timezone.utc).astimezone(self.info).replace(tzinfo=None)

    def moment(self, time: datetime | None) -> str:
        """Format a time in UTC."""
        return moment(None if time is None else self.local(time))

    def shifted(self, points: Points) -> Points:
        """Return the points of charts with local times. In the hour after summer time, they overlap."""
        if self.name == "UTC":
            return points

        def shift(time: float) -> float:
            utc = datetime.fromtimestamp(time / 1e3, timezone.utc).replace(tzinfo=None)
            return time + (self.local(utc) - utc).total_seconds() * 1e3

        def each(listed: list[Point]) -> list[Point]:
            return [{**point, "t": shift(point["t"]), "end": shift(point["end"])} for point in listed]

        start, end = points.domain
        return dataclasses.replace(
            points,
            zone=self.name,
            domain=(shift(start), shift(end)),
            over_time=each(points.over_time),
            by_status=each(points.by_status),
            latencies=each(points.latencies),
            retries=each(points.retries),
        )
