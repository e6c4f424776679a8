"""Questions to a store: features by place and class as GeoDataFrame or Arrow stream, SQL, and exports to other formats.

It reads, and never writes to a store. Extras: `segworker[query]` for SQL, `segworker[geo]` for GeoDataFrames.
"""
