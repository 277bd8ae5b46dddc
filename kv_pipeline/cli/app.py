"""Commands and their options. The work is imported inside each command, so `--help` answers at once."""

from __future__ import annotations

import sys
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kv_pipeline.errors import KvPipelineError, UsageError
from kv_pipeline.export.options import ExportOptions, Format, HashIdScope, Profile
from kv_pipeline.inspection.consumers import Consumer
from kv_pipeline.remote.url import location
from kv_pipeline.reports.analysis_options import AnalysisOptions, Scope
from kv_pipeline.sources.trace_json.options import NestedTimes

EXIT_LEFT_OUT = 1
EXIT_UNDER_LIMIT = 1
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
    str, typer.Option("--store", envvar="KV_PIPELINE_STORE", help="Folder of the store, or its URL; made if missing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the same for machines.")]
DropLostOption = Annotated[
    bool, typer.Option("--drop-lost", help="Go on although recordings that are no longer there would be lost.")
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Show only the first N conversations.")]
InboxOption = Annotated[
    str, typer.Option("--inbox", envvar="KV_PIPELINE_INBOX", help="Landing folder or its URL: one folder per user.")
]
PricesOption = Annotated[
    Path | None, typer.Option("--prices", help="Price file that overrides known prices (docs/prices.md).")
]
DEFAULT_STORE = "data/store"
DEFAULT_INBOX = "data/landing"
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
    "kv-pipeline run --inbox s3://bucket/landing --store s3://bucket/kv-store   |   "
    "kv-pipeline run requests.db ~/.claude/projects   |   kv-pipeline run log.jsonl capture.har   |   "
    "kv-pipeline run --projects ~/.claude/projects"
)
def run(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="requests.db, claude-trace logs, HAR files, folders of transcripts: instead of a landing folder."
        ),
    ] = None,
    inbox: InboxOption = DEFAULT_INBOX,
    projects: Annotated[
        list[Path] | None,
        typer.Option("--projects", help="Folder of transcripts, as a path above; needs no proxy. May be repeated."),
    ] = None,
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
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file of the store first; damaged ones are made again.")
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make everything again, also of a store that an older version made.")
    ] = False,
    drop_lost: DropLostOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more than a line a partition.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Read what is new in the landing folder and bring everything made of it up to date.

    Exit code 0: all input was used. 1: some was left out, and the summary says which. 2: usage.
    """
    from kv_pipeline.cli.run import RunOptions, run_command

    if paths and engine is Engine.CELERY:
        raise UsageError("Workers read a landing folder that all of them see: name it with --inbox, and no files.")
    wanted = RunOptions(
        block_size=block_size,
        keep_billing_header=True if keep_billing_header else None,
        verify=verify,
        rebuild=rebuild,
        drop_lost=drop_lost,
        verbose=verbose,
        batch_size=batch_size if engine is Engine.CELERY else None,
    )
    given = (*(paths or ()), *(projects or ()))
    if run_command(location(inbox), given, location(store), wanted, as_json=as_json):
        raise typer.Exit(EXIT_LEFT_OUT)


@app.command(epilog="Example:  kv-pipeline worker --inbox /srv/inbox --store /srv/kv-store --processes 4")
def worker(
    inbox: InboxOption = DEFAULT_INBOX,
    store: StoreOption = DEFAULT_STORE,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Runs at a time.")] = 1,
    name: Annotated[str, typer.Option("--name", help="What the broker calls the worker.")] = "kv-pipeline",
) -> None:
    """Work on batches that `kv-pipeline run --engine celery` and Dagster's daemon hand out, until stopped.

    Landing folder and store are those of the command, under the paths that they have here. KV_PIPELINE_POSTGRES_URL
    and KV_PIPELINE_BROKER_URL say where storage and broker are.
    """
    from kv_pipeline.cli.worker import worker_command

    worker_command(location(inbox), location(store), processes, name)


@app.command(
    epilog="Examples:  kv-pipeline recover requests.db   |   kv-pipeline recover --min-prefix-tokens 0   |   "
    "kv-pipeline recover --write-transcripts recovered"
)
def recover(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Recordings and folders of transcripts: instead of a landing folder.")
    ] = None,
    inbox: InboxOption = DEFAULT_INBOX,
    store: StoreOption = DEFAULT_STORE,
    exclude_indexed: Annotated[
        bool, typer.Option("--exclude-indexed/--include-indexed", help="Leave to transcripts what they cover.")
    ] = True,
    min_prefix_tokens: Annotated[
        int, typer.Option("--min-prefix-tokens", min=0, help="Shorter tools and system prompts are other clients'.")
    ] = 5000,
    min_shared: Annotated[
        float, typer.Option("--min-shared", min=0, max=1, help="Share of a request that the next begins with.")
    ] = 0.97,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that read content.")] = 1,
    automatic: Annotated[
        bool, typer.Option("--automatic", help="Forget earlier choices: recover what `run` does by itself.")
    ] = False,
    write_transcripts: Annotated[
        Path | None, typer.Option("--write-transcripts", help="Folder for transcripts of what was recovered.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the conversations in recorded requests that no transcript names, for all users.

    The store keeps these choices, and `run` goes on with them.

    Exit code 0: all input was used. 1: some was left out, and `run` says which. 2: usage.
    """
    from kv_pipeline.cli.recover import policy_of, recover_command
    from kv_pipeline.runner import Inputs

    inputs = Inputs(location(inbox), tuple(paths or ()))
    policy = policy_of(min_shared, min_prefix_tokens, workers, excludes_indexed=exclude_indexed, is_automatic=automatic)
    if recover_command(inputs, location(store), policy, write_transcripts, as_json=as_json):
        raise typer.Exit(EXIT_LEFT_OUT)


@app.command(name="list", epilog="Example:  kv-pipeline list --sort requests --limit 10")
def list_conversations(
    store: StoreOption = DEFAULT_STORE,
    limit: LimitOption = None,
    sort: Annotated[SortKey, typer.Option("--sort", help="Order; sizes and last times descend.")] = SortKey.NAME,
    as_json: JsonOption = False,
) -> None:
    """List conversations: user, requests, first and last request, models, agents."""
    from kv_pipeline.cli.tables import list_command

    list_command(location(store), sort.value, limit, as_json=as_json)


@app.command(
    epilog="Examples:  kv-pipeline validate --json | jq .api.fleet   |   kv-pipeline validate --shared-prefixes"
)
def validate(
    store: StoreOption = DEFAULT_STORE,
    limit: LimitOption = None,
    shared_prefixes: Annotated[
        bool, typer.Option("--shared-prefixes", help="API model: everybody reads the tools and system anybody wrote.")
    ] = False,
    collapse_tool_runs: Annotated[
        datetime | None,
        typer.Option("--collapse-tool-runs-since", help="API model: from this day on, a run of tool blocks is one."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare simulated with billed cache reads, of both models: per conversation, per model and for the fleet."""
    from kv_pipeline.cli.tables import validate_command

    validate_command(
        location(store), limit, shares_prefixes=shared_prefixes, collapses_since=collapse_tool_runs, as_json=as_json
    )


@app.command(
    epilog="Examples:  kv-pipeline export --out traces   |   kv-pipeline export --out traces --profile strict "
    "--anonymize   |   kv-pipeline export --out t --conversation-id SESSION --block-size 512   |   "
    "kv-pipeline export --format mooncake --out trace.jsonl   |   "
    "kv-pipeline export --from-traces published --format parquet --out requests.parquet"
)
def export(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for trace JSON; for other formats the file, or a folder for it.")
    ],
    store: StoreOption = DEFAULT_STORE,
    format: Annotated[  # noqa: A002  (named like the option)
        Format, typer.Option("--format", help="What to write; docs/export-formats.md describes each.")
    ] = Format.TRACE,
    from_traces: Annotated[
        list[Path] | None,
        typer.Option("--from-traces", help="Trace JSON files or folders, instead of the store; may be repeated."),
    ] = None,
    profile: Annotated[
        Profile | None,
        typer.Option("--profile", help="Of trace JSON; upstream: kv-cache-tester; strict: AIPerf, AISimulate."),
    ] = None,
    block_size: Annotated[
        int | None,
        typer.Option("--block-size", help="Tokens a block; default mooncake 512, bailian 16, others the input's."),
    ] = None,
    min_requests: Annotated[int, typer.Option("--min-requests", min=1, help="Leave out smaller traces.")] = 1,
    split_at_gap: Annotated[
        float | None, typer.Option("--split-at-gap", help="Split where nothing ran for SECONDS: _s1, _s2 ...")
    ] = None,
    subagents: Annotated[bool, typer.Option("--subagents/--no-subagents", help="Include sub-agents.")] = True,
    conversation_id: Annotated[
        list[str] | None, typer.Option("--conversation-id", help="Only this conversation or trace; may be repeated.")
    ] = None,
    anonymize: Annotated[
        bool, typer.Option("--anonymize", help="trace_NNNN and agent_NNN instead of ids, no times of day.")
    ] = False,
    hash_ids: Annotated[
        HashIdScope | None,
        typer.Option("--hash-ids", help="Number blocks over all traces, or in each; strict, agentic-mooncake: local."),
    ] = None,
    absolute_timestamps: Annotated[
        bool, typer.Option("--absolute-timestamps", help="Times of day beside relative seconds: trace, parquet.")
    ] = False,
    sessions: Annotated[
        bool, typer.Option("--sessions/--no-sessions", help="Mooncake rows say their session and delay.")
    ] = True,
    nested_times: Annotated[
        NestedTimes, typer.Option("--nested-times", help="Of --from-traces: what t inside sub-agents counts from.")
    ] = NestedTimes.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Write traces for replay tools and simulators: trace JSON, Mooncake, Bailian, libCacheSim, Parquet.

    Exit code 0: all input was used. 1: some was left out, and the summary says which. 2: usage.
    """
    from kv_pipeline.cli.export import ExportInput, export_command

    if profile is not None and format is not Format.TRACE:
        raise UsageError(f"Profiles are those of trace JSON; {format} has none. Leave out --profile.")
    wanted = ExportOptions(
        format=format,
        profile=profile or Profile.UPSTREAM,
        hash_ids=hash_ids,
        block_size=block_size,
        min_requests=min_requests,
        split_at_gap_s=split_at_gap,
        with_subagents=subagents,
        anonymize=anonymize,
        absolute_timestamps=absolute_timestamps,
        with_sessions=sessions,
    )
    source = ExportInput(location(store), from_traces, nested_times, conversation_id)
    if export_command(source, out, wanted, as_json=as_json):
        raise typer.Exit(EXIT_LEFT_OUT)


@app.command(
    epilog="Examples:  kv-pipeline inspect trace.json   |   kv-pipeline inspect traces --for aiperf   |   "
    "kv-pipeline inspect mooncake.jsonl --json"
)
def inspect(
    paths: Annotated[list[Path], typer.Argument(help="Trace files in any format, or folders of them.")],
    consumer: Annotated[
        Consumer | None, typer.Option("--for", help="Only this reader; exit code 1 unless all files are valid for it.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Show only the first N problems a reader.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Say what is in trace files, which readers take them, and if not, where and why.

    Exit code 0: every file is valid for some reader, or for the one named. 1: some is not. 2: usage.
    """
    from kv_pipeline.cli.inspect import inspect_command

    if not inspect_command(paths, consumer, limit, as_json=as_json):
        raise typer.Exit(EXIT_LEFT_OUT)


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


@app.command(epilog="Examples:  kv-pipeline purge --older-than 30   |   kv-pipeline purge --all --user ada")
def purge(
    store: StoreOption = DEFAULT_STORE,
    inbox: InboxOption = DEFAULT_INBOX,
    older_than: Annotated[
        float | None, typer.Option("--older-than", min=0, help="Content that no request of the last DAYS contains.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All content, however new.")] = False,
    user: Annotated[str | None, typer.Option("--user", help="Only this user's content.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Remove content from the store; traces, reports and everything else that was made of it stay."""
    from kv_pipeline.cli.retention import purge_command

    purge_command(location(store), location(inbox), older_than, user, everything=everything, as_json=as_json)


@app.command(epilog="Example:  kv-pipeline forget ada --exports traces --exports reports")
def forget(
    user: Annotated[str, typer.Argument(help="User to remove, as `kv-pipeline list` names them.")],
    store: StoreOption = DEFAULT_STORE,
    inbox: InboxOption = DEFAULT_INBOX,
    exports: Annotated[
        list[Path] | None, typer.Option("--exports", help="Folder of traces or reports; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Remove one user from every table, from Dagster's history, and from exports.

    Exit code 1: something of them is left where this command doesn't reach, such as the landing folder; it says what.
    """
    from kv_pipeline.cli.retention import forget_command

    if forget_command(location(store), location(inbox), user, exports or [], as_json=as_json):
        raise typer.Exit(EXIT_LEFT_OUT)


@app.command(name="rotate-salt", epilog="Example:  kv-pipeline rotate-salt --inbox INBOX --store STORE")
def rotate_salt(
    store: StoreOption = DEFAULT_STORE,
    inbox: InboxOption = DEFAULT_INBOX,
    drop_lost: DropLostOption = False,
    as_json: JsonOption = False,
) -> None:
    """Replace the store's salt and make everything again from the landing folder.

    With KV_PIPELINE_SALT, set it to the new salt first. Exit code 1: something could not be made again.
    """
    from kv_pipeline.cli.retention import rotate_command

    if rotate_command(location(store), location(inbox), drop_lost=drop_lost, as_json=as_json):
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


@app.command(
    epilog="Examples:  kv-pipeline report --out report   |   kv-pipeline report --out report --png --kv-model "
    "llama-3.1-70b   |   kv-pipeline report --text"
)
def report(
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the pages; made if missing.")] = None,
    store: StoreOption = DEFAULT_STORE,
    conversation_id: Annotated[
        list[str] | None, typer.Option("--conversation-id", help="Only this conversation; may be repeated.")
    ] = None,
    png: Annotated[bool, typer.Option("--png", help="The main figures as pictures, too.")] = False,
    content_reuse: Annotated[
        bool, typer.Option("--content-reuse", help="Count tokens seen before elsewhere in a prompt, too; takes longer.")
    ] = False,
    text: Annotated[bool, typer.Option("--text", help="Print the statistics as text.")] = False,
    prices: PricesOption = None,
    kv_model: Annotated[
        str | None, typer.Option("--kv-model", help="Model whose KV cache is counted in GB (llama-3.1-70b).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write an offline HTML page of the fleet and one per conversation, or print the statistics."""
    if out is None and not text:
        raise UsageError("Name a folder for the pages with --out, or print statistics with --text.")
    if as_json and text:
        raise UsageError("--json and --text exclude each other; `kv-pipeline validate --json` has rates for machines.")
    from kv_pipeline.cli.report import options_of, report_command

    options = options_of(prices, kv_model, with_png=png, with_content_reuse=content_reuse)
    report_command(location(store), out, conversation_id, options, as_text=text, as_json=as_json)


@app.command(
    epilog="Examples:  kv-pipeline monitor --days 7   |   kv-pipeline monitor --user ada --export cache.json   |   "
    "kv-pipeline monitor --fail-under 80"
)
def monitor(
    store: StoreOption = DEFAULT_STORE,
    days: Annotated[float | None, typer.Option("--days", min=0, help="Only the last N days.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="Only from this date or time on, UTC.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Only up to this date or time, UTC.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Only this user's conversations.")] = None,
    prices: PricesOption = None,
    export_file: Annotated[Path | None, typer.Option("--export", help="Write the report as JSON, too.")] = None,
    fail_under: Annotated[
        float | None, typer.Option("--fail-under", help="Exit with 1 if the hit rate is lower: 0.8 or 80.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how well caching works, what it saves, and what to do about losses.

    Exit code 0: fine. 1: the hit rate is under --fail-under. 2: usage.
    """
    from datetime import UTC, datetime

    from kv_pipeline.cli.monitor import monitor_command, period_of

    period = period_of(days, since, until, datetime.now(UTC))
    if monitor_command(location(store), period, user, prices, export_file, fail_under, as_json=as_json):
        raise typer.Exit(EXIT_UNDER_LIMIT)
