"""The weather of a place, from Open-Meteo, which needs no key."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from orchestrator.errors import ToolError
from orchestrator.text import data_block, one_line
from orchestrator.toolbox.endpoints import Environ, base_url, check_words, json_of, setting
from orchestrator.tools import answering_tool

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

__all__ = ["weather_tool"]

_DESCRIPTION = "The weather of a place now and in the coming days. Takes the name of a town or region, such as Oslo, or Paris, Texas."
_NOW = ("temperature_2m", "apparent_temperature", "relative_humidity_2m", "precipitation", "weather_code", "wind_speed_10m")
_DAILY = ("weather_code", "temperature_2m_max", "temperature_2m_min", "precipitation_sum", "precipitation_probability_max")
# WMO code table 4677, as far as Open-Meteo uses it (open-meteo.com/en/docs, "Weather variable documentation").
_WORDS = {
    0: "clear", 1: "mainly clear", 2: "partly cloudy", 3: "overcast", 45: "fog", 48: "freezing fog", 51: "light drizzle", 53: "drizzle",
    55: "dense drizzle", 56: "light freezing drizzle", 57: "freezing drizzle", 61: "light rain", 63: "rain", 65: "heavy rain",
    66: "light freezing rain", 67: "freezing rain", 71: "light snow", 73: "snow", 75: "heavy snow", 77: "snow grains", 80: "light showers",
    81: "showers", 82: "violent showers", 85: "light snow showers", 86: "snow showers", 95: "thunderstorm", 96: "thunderstorm with hail",
    99: "thunderstorm with heavy hail",
}  # fmt: skip


def weather_tool(environ: Environ, boundary: str) -> "BaseTool":
    """`weather(place, days)`; OPEN_METEO_URL names another server than the public ones. Raises InputError."""
    own = bool(setting(environ, "OPEN_METEO_URL"))
    forecasts = base_url(environ, "OPEN_METEO_URL", "https://api.open-meteo.com")
    places = forecasts if own else "https://geocoding-api.open-meteo.com"

    async def weather(place: str, days: Annotated[int, Field(ge=1, le=7)] = 3) -> str:
        where = await _place(places, check_words(place, environ, boundary, most=100))
        given = {
            "latitude": str(where["latitude"]),
            "longitude": str(where["longitude"]),
            "current": ",".join(_NOW),
            "daily": ",".join(_DAILY),
            "forecast_days": str(days),
            "timezone": "auto",
        }
        answer = await json_of("Open-Meteo", f"{forecasts}/v1/forecast", params=given)
        if not isinstance(answer, Mapping) or not isinstance(answer.get("current"), Mapping):
            raise ToolError("Open-Meteo answered with JSON that holds no weather")
        named = ", ".join(str(where[key]) for key in ("name", "admin1", "country") if where.get(key))
        return data_block("weather", "\n".join([_now(answer["current"]), *_days(answer.get("daily"))]), boundary, place=one_line(named))

    return answering_tool(weather, _DESCRIPTION, read_only=True)


async def _place(url: str, place: str) -> Mapping[str, Any]:
    """The best match of a name; what stands behind a comma says which one of several."""
    name, *rest = [part.strip() for part in place.split(",")]
    answer = await json_of("Open-Meteo", f"{url}/v1/search", params={"name": name, "count": "10", "language": "en", "format": "json"})
    found = answer.get("results") if isinstance(answer, Mapping) else None
    rows = [row for row in found or () if isinstance(row, Mapping) and {"latitude", "longitude"} <= row.keys()]
    if not rows:
        raise ToolError(f"Open-Meteo knows no place {name!r}", remedy="Give the name of a town")
    wanted = {part.casefold() for part in rest if part}
    return next((row for row in rows if wanted & {str(row.get(key, "")).casefold() for key in _REGIONS}), rows[0])


_REGIONS = ("admin1", "admin2", "country", "country_code")


def _now(current: Mapping[str, Any]) -> str:
    warm, feels, humid, rain, code, wind = (current.get(key) for key in _NOW)
    return (
        f"now ({one_line(current.get('time', ''), 20)}, local time): {_words(code)}, {_number(warm)} °C, feels like {_number(feels)} °C, "
        f"humidity {_number(humid)} %, wind {_number(wind)} km/h, precipitation {_number(rain)} mm"
    )


def _days(daily: Any) -> list[str]:
    if not isinstance(daily, Mapping) or not isinstance(daily.get("time"), list):
        return []

    def at(key: str, index: int) -> Any:
        values = daily.get(key)
        return values[index] if isinstance(values, list) and index < len(values) else None

    return [
        f"{one_line(day, 20)}: {_words(at('weather_code', i))}, {_number(at('temperature_2m_min', i))} to "
        f"{_number(at('temperature_2m_max', i))} °C, precipitation {_number(at('precipitation_sum', i))} mm "
        f"(probability {_number(at('precipitation_probability_max', i))} %)"
        for i, day in enumerate(daily["time"][:7])
    ]


def _words(code: Any) -> str:
    return _WORDS.get(code, "weather not told") if isinstance(code, int) else "weather not told"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else "?"
