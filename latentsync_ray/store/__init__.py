"""Content-addressed records and states of segments, on any pyarrow filesystem; a command looks after them.

    latentsync-ray store STORAGE {list,lineage,verify,collect}

    <root>/segments/<key>/record.json          metrics, lineage, timings, checksums; kept for ever
    <root>/segments/<key>/state.safetensors    model, optimizer moments, step; may be dropped
    <root>/segments/<key>/terms.json           validation terms of each sample, if the training tells them
    <root>/segments/<key>/preview.png          what the model makes of a validation sample, if the training shows it
    <root>/segments/<key>/executions/*.json    one small file for each time that a worker began to train it
    <root>/segments/<key>/partial.*            how far a worker came that had to leave its node, and the state there

The state is written first, the record last, each atomically: a record that exists is complete. Every file that is
ever read again has a SHA-256: a state and a preview in their record, JSON in itself.
"""

from latentsync_ray.store.errors import DamagedEntryError, StorageError
from latentsync_ray.store.segments import Store
from latentsync_ray.store.weights import weights_sha256

__all__ = [
    "RAY_FOLDER",
    "SPENT_FILE",
    "TRIALS_FILE",
    "DamagedEntryError",
    "StorageError",
    "Store",
    "weights_sha256",
]

RAY_FOLDER = "ray"
"""At the root: Ray's own files of the commands that run on several nodes, a folder for each."""
TRIALS_FILE = "trials.json"
"""In a search's folder: what became of its trials."""
SPENT_FILE = "spent.json"
"""In a search's folder: what it has used; written again every few seconds while it runs."""
