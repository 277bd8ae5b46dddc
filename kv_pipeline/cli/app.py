"""Commands and their options. The work is imported inside each command, so `--help` answers at once."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kv_pipeline.errors import KvPipelineError, UsageError
from kv_pipeline.export.options import ExportOptions, HashIdScope, Profile
from kv_pipeline.reports.analysis_options import AnalysisOptions, Scope
from kv_pipeline.sources.trace_json.options import NestedTimes

EXIT_LEFT_OUT = 1
EXIT_USAGE = 2

app = typer.Typer(
    name="kv-pipeline",
    help="KV-cache traces, validated cache simulation and loss attribution from Claude Code traffic.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StoreOption = Annotated[
    Path, typer.Option("--store", envvar="KV_PIPELINE_STORE", help="Folder of the store; made if missing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the same for machines.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Show only the first N conversations.")]
InboxOption = Annotated[
    Path, typer.Option("--inbox", envvar="KV_PIPELINE_INBOX", help="Landing folder: one folder per user in it.")
]
DEFAULT_STORE = Path("data/store")
DEFAULT_INBOX = Path("data/landing")
DEFAULT_BATCH_SIZE = 200


class Engine(StrEnum):
    """Who does the work of a run."""

    LOCAL = "local"
    CELERY = "celery"


class SortKey(StrEnum):
    """What a list of conversations is sorted by."""

    NAME = "name"
    FIRST = "first"
    LAST = "last"
    REQUESTS = "requests"


def run_app() -> None:
    """Run the command line; errors of this package become one line on standard error."""
    try:
        app()
    except UsageError as error:
        _fail(error, EXIT_USAGE)
    except KvPipelineError as error:
        _fail(error, EXIT_LEFT_OUT)
    except KeyboardInterrupt:
        _fail("Stopped. What was finished is in the store; run again to go on.", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader (head, less) has seen enough
        sys.exit(0)


def _fail(message: object, code: int) -> None:
    print(f"kv-pipeline: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


@app.command(
    epilog="Examples:  kv-pipeline run   |   kv-pipeline run --inbox ~/captures --store ~/kv-store   |   "
    "kv-pipeline run requests.db ~/.claude/projects   |   kv-pipeline run log.jsonl"
)
def run(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="requests.db, claude-trace logs, folders of transcripts: instead of a landing folder."),
    ] = None,
    inbox: InboxOption = DEFAULT_INBOX,
    store: StoreOption = DEFAULT_STORE,
    block_size: Annotated[
        int | None, typer.Option("--block-size", min=1, help="Tokens a block of a new store (64).")
    ] = None,
    keep_billing_header: Annotated[
        bool, typer.Option("--keep-billing-header", help="Hash billing headers of a new store as sent.")
    ] = False,
    engine: Annotated[
        Engine, typer.Option("--engine", help="local: this process; celery: workers, on any number of machines.")
    ] = Engine.LOCAL,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Conversations a worker gets at a time.")
    ] = DEFAULT_BATCH_SIZE,
    as_json: JsonOption = False,
) -> None:
    """Read what is new in the landing folder and bring everything made of it up to date.

    Exit code 0: all input was used. 1: some was left out, and the summary says which. 2: usage.
    """
    from kv_pipeline.cli.run import run_command
    from kv_pipeline.runner import Inputs

    if paths and engine is Engine.CELERY:
        raise UsageError("Workers read a landing folder that all of them see: name it with --inbox, and no files.")
    has_left_out = run_command(
        Inputs(inbox, tuple(paths or ())),
        store,
        block_size=block_size,
        keep_billing_header=True if keep_billing_header else None,
        batch_size=batch_size if engine is Engine.CELERY else None,
        as_json=as_json,
    )
    if has_left_out:
        raise typer.Exit(EXIT_LEFT_OUT)


@app.command(epilog="Example:  kv-pipeline worker --inbox /srv/inbox --store /srv/kv-store --processes 4")
def worker(
    inbox: InboxOption = DEFAULT_INBOX,
    store: StoreOption = DEFAULT_STORE,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Runs at a time.")] = 1,
    name: Annotated[str, typer.Option("--name", help="Name of the worker, unique on its machine.")] = "kv-pipeline",
) -> None:
    """Work on batches that `kv-pipeline run --engine celery` and Dagster's daemon hand out, until stopped.

    Landing folder and store are those of the command, under the paths that they have here. KV_PIPELINE_POSTGRES_URL
    and KV_PIPELINE_BROKER_URL say where storage and broker are.
    """
    from kv_pipeline.cli.worker import worker_command

    worker_command(inbox, store, processes, name)


@app.command(name="list", epilog="Example:  kv-pipeline list --sort requests --limit 10")
def list_conversations(
    store: StoreOption = DEFAULT_STORE,
    limit: LimitOption = None,
    sort: Annotated[SortKey, typer.Option("--sort", help="Order; sizes and last times descend.")] = SortKey.NAME,
    as_json: JsonOption = False,
) -> None:
    """List conversations: user, requests, first and last request, models, agents."""
    from kv_pipeline.cli.tables import list_command

    list_command(store, sort.value, limit, as_json=as_json)


@app.command(epilog="Example:  kv-pipeline validate --json | jq .fleet")
def validate(store: StoreOption = DEFAULT_STORE, limit: LimitOption = None, as_json: JsonOption = False) -> None:
    """Compare simulated with billed cache reads: per conversation, per model and for the fleet, every scope."""
    from kv_pipeline.cli.tables import validate_command

    validate_command(store, limit, as_json=as_json)


@app.command(
    epilog="Examples:  kv-pipeline export --out traces   |   kv-pipeline export --out traces --profile strict "
    "--anonymize   |   kv-pipeline export --out t --conversation-id SESSION --block-size 512"
)
def export(
    out: Annotated[Path, typer.Option("--out", help="Folder for the trace files; made if missing.")],
    store: StoreOption = DEFAULT_STORE,
    profile: Annotated[
        Profile, typer.Option("--profile", help="upstream: kv-cache-tester; strict: AIPerf, AISimulate.")
    ] = Profile.UPSTREAM,
    block_size: Annotated[int | None, typer.Option("--block-size", help="Tokens a block; default the store's.")] = None,
    min_requests: Annotated[int, typer.Option("--min-requests", min=1, help="Leave out smaller traces.")] = 1,
    split_at_gap: Annotated[
        float | None, typer.Option("--split-at-gap", help="Split where nothing ran for SECONDS: _s1, _s2 ...")
    ] = None,
    subagents: Annotated[bool, typer.Option("--subagents/--no-subagents", help="Include sub-agents.")] = True,
    conversation_id: Annotated[
        list[str] | None, typer.Option("--conversation-id", help="Only this conversation; may be repeated.")
    ] = None,
    anonymize: Annotated[
        bool, typer.Option("--anonymize", help="trace_NNNN and agent_NNN instead of ids, no times of day.")
    ] = False,
    hash_ids: Annotated[
        HashIdScope | None,
        typer.Option("--hash-ids", help="Number blocks over all traces, or in each; upstream global, strict local."),
    ] = None,
    absolute_timestamps: Annotated[
        bool, typer.Option("--absolute-timestamps", help="ISO 8601 times beside the relative seconds.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write traces as JSON, one file a conversation."""
    from kv_pipeline.cli.export import export_command

    wanted = ExportOptions(
        profile=profile,
        hash_ids=hash_ids,
        block_size=block_size,
        min_requests=min_requests,
        split_at_gap_s=split_at_gap,
        with_subagents=subagents,
        anonymize=anonymize,
        absolute_timestamps=absolute_timestamps,
    )
    export_command(store, out, wanted, conversation_id, as_json=as_json)


@app.command(
    epilog="Examples:  kv-pipeline analyze traces   |   kv-pipeline analyze traces --scope fleet --kv-model deepseek-v3"
    "   |   kv-pipeline analyze traces --json > analysis.json"
)
def analyze(
    paths: Annotated[list[Path], typer.Argument(help="Folders of trace JSON, or single files.")],
    scope: Annotated[
        Scope, typer.Option("--scope", help="conversation: each trace has caches of its own; fleet: all share.")
    ] = Scope.CONVERSATION,
    kv_model: Annotated[
        str | None, typer.Option("--kv-model", help="Model whose KV cache is counted in GB (llama-3.1-70b).")
    ] = None,
    kv_bytes_per_token: Annotated[
        float | None, typer.Option("--kv-bytes-per-token", min=0, help="KV bytes a token, instead of --kv-model.")
    ] = None,
    nested_times: Annotated[
        NestedTimes, typer.Option("--nested-times", help="What t inside sub-agents counts from, if not found out.")
    ] = NestedTimes.AUTO,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Analyse reuse in trace files: hit rates by lifetime and capacity, the Belady bound, working sets.

    Exit code 0: all files were used. 1: some were left out, and the summary says which. 2: usage.
    """
    from kv_pipeline.cli.analyze import analyze_command

    wanted = AnalysisOptions(
        scope=scope,
        nested_times=nested_times,
        kv_model=kv_model,
        kv_bytes_per_token=kv_bytes_per_token,
        limit=limit,
    )
    if analyze_command(paths, wanted, as_json=as_json):
        raise typer.Exit(EXIT_LEFT_OUT)


@app.command(
    epilog="Examples:  kv-pipeline demo --out data/landing   |   "
    "kv-pipeline demo --users 20 --conversations 50 --turns 30 --out /srv/inbox"
)
def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Landing folder to make; must not have the demo's users yet.")
    ] = Path("data/landing"),
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="example: small, everything once; benchmark: 300 MB; fleet: many users, 450 MB."),
    ] = None,
    users: Annotated[int | None, typer.Option("--users", min=1, help="Users, instead of the preset's.")] = None,
    conversations: Annotated[
        int | None, typer.Option("--conversations", min=1, help="Conversations of each user.")
    ] = None,
    turns: Annotated[
        int | None, typer.Option("--turns", min=1, help="Requests of a conversation's main agent, on average.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same traffic.")] = 1,
) -> None:
    """Make a landing folder of invented traffic: both proxy generations, sub-agents, failures, a compaction.

    With --users, --conversations or --turns, and no preset, it is a fleet: of realistic shape and any size.
    """
    from kv_pipeline.cli.demo import demo_command

    demo_command(out, preset, seed, {"users": users, "conversations": conversations, "turns": turns})
