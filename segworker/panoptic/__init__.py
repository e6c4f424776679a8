"""Stuff: from what each tile scored to one class for each pixel, and from classes to regions of a scene.

`blend` settles the class of pixels that several windows see; `regions` joins equal classes by pixel contact, block of
tiles by block of tiles, and gives regions below an area to their neighbours. Things come first: their pixels are taken
before regions are formed. Every valid pixel ends up in exactly one segment.
"""
