"""`bench run --ray`: every cell of a plan as one task of a Ray cluster, its record in the same folder.

`shares` decides how much of a node a cell gets, `handout` which cells may be worked on now, `job` what a node is told, `worker`
does it there, `cluster` talks to Ray, `driver` keeps the whole going. Only `cluster` imports ray, and only when a run asks for it.
"""
