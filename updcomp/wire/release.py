"""The version of this package, for every floor."""

VERSION = "0.1.0"
