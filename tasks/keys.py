"""Every Redis key and store path of penstock, in one table.

======================= ====== ===================================== ======== ============ ============
key                     type   holds                                 lives    written by   read by
======================= ====== ===================================== ======== ============ ============
penstock:jobs           zset   job -> time of creation (ms)          for ever client       client
penstock:active         set    jobs that are submitting or running   for ever ledger steps node, client
penstock:key:KEY        string the job that this submission key made for ever client       client
penstock:job:J          hash   spec, state, counters                 for ever ledger steps all
penstock:job:J:open     zset   chunk -> time (ms) when its ticket or job      ledger steps ledger steps
                               lease lapses: released, not recorded
penstock:job:J:leases   hash   chunk -> "token slot"; "0": delayed   job      ledger steps ledger steps
penstock:job:J:attempts hash   chunk -> claims so far                chunk    ledger steps ledger steps
penstock:job:J:journal  hash   chunk -> what ended attempts taught;  chunk    ledger steps slot
                               chunk:now -> rows at work; chunk:why
                               -> how the last attempt ended
penstock:done:J         hash   chunk -> "token rows failed truncated for ever slot         client
                               tokens padded bytes crc32"
penstock:job:J:failed   set    recorded chunks with error rows       for ever ledger steps client
penstock:job:J:refusals hash   slot -> why it will not do this job   for ever slot         client
penstock:slots          zset   slot -> time (ms) it was last seen    60 s     slot         client, node
penstock:slot:S         hash   who the slot is and what it does      60 s     slot         client, node
penstock:drained        set    nodes that are to take no more        for ever client       client, node
                               tickets
penstock:store:FOLDER   hash   objects of a redis:// store           for ever client, slot client, slot
penstock:size:FOLDER    string bytes in that folder                  for ever client, slot client, slot
penstock:ledger         set    the ids of this ledger                for ever client, node client, node
penstock:ledger:STORE   string the server for which it was compared  for ever client, node client, node
                               with the jobs of the store STORE
penstock:job:J:recovery string the process that rebuilds the job     seconds  client, node client, node
penstock:reconciler     string the process that reconciles just now  seconds  node, client node, client
penstock:vector:KEY     string a vector of the cache                 30 days  slot         slot
penstock:parked         list   messages that no node could read      newest   node         client
penstock.OPERATION.D    list   Celery's tickets for model digest D   tickets  client, slot node
======================= ====== ===================================== ======== ============ ============

========================================== ============================= ================== =========
store path                                 holds                          written by         read by
========================================== ============================= ================== =========
penstock-store-id                          the store's random id          whoever is first   all
manifests/J/made-LEDGER.json               spec and gate of a job, and   client             recovery
                                           the ledger that it belongs to
manifests/J/sealed.json                    its totals                    client             recovery
manifests/J/ended.json                     that it was cancelled or      client, slot       recovery
                                           failed
jobs/J/input/00000042.arrow                a chunk input                  client             slot
jobs/J/texts/00000042.arrow                a text block of a scoring job  client             slot
jobs/J/result/00000042-0000000000007.arrow a chunk result, under the     slot               client
                                           fencing token of its lease
========================================== ============================= ================== =========
"""

from __future__ import annotations

JOBS = "penstock:jobs"
ACTIVE = "penstock:active"
SLOTS = "penstock:slots"
DRAINED = "penstock:drained"
RECONCILER = "penstock:reconciler"
LEDGER = "penstock:ledger"
PARKED = "penstock:parked"

STORE_ID = "penstock-store-id"
MANIFESTS = "manifests/"


def submission(key: str) -> str:
    """Return where the job of a submission key is noted."""
    return f"penstock:key:{key}"


def job(job_id: str) -> str:
    """Return the hash of a job."""
    return f"penstock:job:{job_id}"


def refusals(job_id: str) -> str:
    """Return the hash of slots that refused a job."""
    return f"penstock:job:{job_id}:refusals"


def step_keys(job_id: str, queue: str) -> list[str]:
    """Return the KEYS of every ledger step, in the order that the Lua prelude names them."""
    base = job(job_id)
    parts = ("open", "leases", "attempts", "journal", "failed")
    return [base, *(f"{base}:{part}" for part in parts), ACTIVE, queue]


def leases(job_id: str) -> str:
    """Return the hash of a job's leases."""
    return f"penstock:job:{job_id}:leases"


def failed(job_id: str) -> str:
    """Return the set of a job's recorded chunks with error rows."""
    return f"penstock:job:{job_id}:failed"


def done(job_id: str) -> str:
    """Return the hash of a job's recorded chunks. Not below the job's: who may write that may not write this."""
    return f"penstock:done:{job_id}"


def recovery(job_id: str) -> str:
    """Return where it is noted that a process rebuilds a job."""
    return f"penstock:job:{job_id}:recovery"


def compared(store_id: str) -> str:
    """Return where it is noted that the ledger was compared with a store."""
    return f"penstock:ledger:{store_id}"


def slot(slot_id: str) -> str:
    """Return the hash of a slot."""
    return f"penstock:slot:{slot_id}"


def vector(key: str) -> str:
    """Return where a cache keeps the vector of this key."""
    return f"penstock:vector:{key}"


def job_folder(job_id: str) -> str:
    """Return the folder of a job's chunk inputs and results."""
    return f"jobs/{job_id}/"


def manifest(job_id: str) -> str:
    """Return the folder of a job's manifest."""
    return f"{MANIFESTS}{job_id}/"


def manifest_made(job_id: str, ledger_id: str) -> str:
    """Return where it is stored how a job was made. The ledger's id stands in the name, so that a listing tells it."""
    return f"{manifest(job_id)}made-{ledger_id}.json"


def manifest_sealed(job_id: str) -> str:
    """Return where the totals of a sealed job are stored."""
    return f"{manifest(job_id)}sealed.json"


def manifest_ended(job_id: str) -> str:
    """Return where it is stored that a job was cancelled or failed."""
    return f"{manifest(job_id)}ended.json"


def input_path(job_id: str, chunk: int) -> str:
    """Return where a chunk input is stored."""
    return f"jobs/{job_id}/input/{chunk:08d}.arrow"


def texts_path(job_id: str, block: int) -> str:
    """Return where a text block is stored."""
    return f"jobs/{job_id}/texts/{block:08d}.arrow"


def results(job_id: str) -> str:
    """Return the folder of a job's chunk results."""
    return f"{job_folder(job_id)}result/"


def result_path(job_id: str, chunk: int, token: int) -> str:
    """Return where the holder of a fencing token stores its chunk result."""
    return f"jobs/{job_id}/result/{chunk:08d}-{token:013d}.arrow"


def redis_folder(path: str) -> str:
    """Return the hash that holds an object of a redis:// store."""
    return f"penstock:store:{path.rpartition('/')[0]}"


def redis_folder_bytes(path: str) -> str:
    """Return where the size of that hash is counted."""
    return f"penstock:size:{path.rpartition('/')[0]}"
