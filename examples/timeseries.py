"""Time series in keyva: monthly stock prices, daily weather and hourly temperatures, and questions about ranges of time.

The layout is one rule: a key is ``series/time``, with the time written so that text order is time order (ISO 8601). All values of a
series then lie side by side, and a range of time is a range of keys.

    stocks/AAPL/2008-03-01          price in dollars
    weather/seattle/2012-01-04      JSON: precipitation in mm, temperatures in degrees Celsius, wind in m/s
    temperature/seattle/2010-01-01T05:00    degrees Fahrenheit

Run it: ``pip install '.[examples]'``, then ``python examples/timeseries.py [DIRECTORY]``. The data comes with the package vega_datasets
(https://github.com/vega/vega-datasets).
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime

from vega_datasets import data

import keyva


def stock_prices() -> Iterator[tuple[str, str]]:
    """Yield a key and a value for each month of each stock."""
    with open(data.stocks.filepath, newline="") as file:
        for row in csv.DictReader(file):
            day = datetime.strptime(row["date"], "%b %d %Y").date()
            yield f"stocks/{row['symbol']}/{day}", row["price"]


def weather() -> Iterator[tuple[str, str]]:
    """Yield a key and a value for each day in Seattle."""
    with open(data.seattle_weather.filepath, newline="") as file:
        for row in csv.DictReader(file):
            day = row.pop("date").replace("/", "-")
            yield f"weather/seattle/{day}", json.dumps(row)


def temperatures() -> Iterator[tuple[str, str]]:
    """Yield a key and a value for each hour in Seattle."""
    with open(data.seattle_temps.filepath, newline="") as file:
        for row in csv.DictReader(file):
            hour = datetime.strptime(row["date"], "%Y/%m/%d %H:%M").isoformat(timespec="minutes")
            yield f"temperature/seattle/{hour}", row["temp"]


def load(db: keyva.Client) -> None:
    """Write each data set as one batch: all of it is there, or nothing."""
    for source in (stock_prices, weather, temperatures):
        with db.write_batch() as batch:
            for key, value in source():
                batch.put(key, value)
            print(f"loading {len(batch):4d} {source.__name__}".replace("_", " "))


def ask(db: keyva.Client) -> None:
    """Answer questions with range reads."""
    first, *_, last = db.iterator("stocks/AAPL/2008", "stocks/AAPL/2009")
    print(f"Apple in 2008: {first[1].decode()} dollars in January, {last[1].decode()} in December")

    peak = max(db.iterator(prefix="stocks/IBM/"), key=lambda entry: float(entry[1]))
    print(f"IBM was dearest in {peak[0].decode().rsplit('/', 1)[1][:7]}: {peak[1].decode()} dollars")

    newest = next(db.iterator(prefix="stocks/GOOG/", reverse=True))
    print(f"the newest price of Google is of {newest[0].decode().rsplit('/', 1)[1]}: {newest[1].decode()} dollars")

    rain: dict[str, float] = {}
    for key, value in db.iterator("weather/seattle/2012", "weather/seattle/2016"):
        month = key.decode().rsplit("/", 1)[1][:7]
        rain[month] = rain.get(month, 0.0) + float(json.loads(value)["precipitation"])
    wettest = max(rain, key=lambda month: rain[month])
    print(f"the wettest month in Seattle was {wettest}: {rain[wettest]:.1f} mm")

    afternoon = [
        float(value) for value in db.iterator("temperature/seattle/2010-07-01T12", "temperature/seattle/2010-07-01T18", include_key=False)
    ]
    low, high = min(afternoon), max(afternoon)
    print(f"on the afternoon of 1 July 2010 it had {low:.1f} to {high:.1f} degrees Fahrenheit ({len(afternoon)} readings)")


def main() -> None:
    """Load the data into a store and ask it."""
    directory = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="keyva-example-")
    with keyva.open(directory) as db:
        load(db)
        ask(db)


if __name__ == "__main__":
    main()
