"""The maps that the format knows, by name and by number; a new one is its functions, and its name here."""

from updcomp.wire import map_flats, map_products
from updcomp.wire.mapping import Map

_ALL = (
    map_products.FACTORS,
    map_products.HALF,
    map_products.SCALED,
    map_products.MIXED,
    map_products.GROUPED,
    map_products.WAVES,
    map_products.TIED,
    map_products.COEFFICIENTS,
    map_flats.PLACES,
    map_flats.LEVELS,
    map_flats.ROTATED,
    map_flats.SPREAD,
)
MAPS: dict[str, Map] = {found.name: found for found in _ALL}
BY_NUMBER = {found.number: found for found in _ALL}
