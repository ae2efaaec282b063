"""What both programs can write into their log, as a closed list: `subject.event`, each with the fields that it carries."""

from enum import StrEnum
from typing import Self

__all__ = ["LogEvent"]


class LogEvent(StrEnum):
    """One kind of line: `log.warning(LogEvent.X, extra={field: value, ...})` with just its `fields`."""

    fields: tuple[str, ...]

    def __new__(cls, name: str, *fields: str) -> Self:
        """`name` and the names of the fields."""
        event = str.__new__(cls, name)
        event._value_, event.fields = name, fields
        return event

    ADAPTER_KEPT = "adapter.kept", "what"
    """An adapter went on as it was, or was taken into use or out of it; what: in words."""
    ADAPTER_TUNED = "adapter.tuned", "what"
    """A fit ended; what: its outcome in words."""
    AGENT_DEVICE = "agent.device", "code", "error"
    """The disk or the memory of this device refused; the agent tries again."""
    AGENT_REFUSED = "agent.refused", "reason", "error"
    """Something that the hub sent was not believed."""
    AGENT_TIME = "agent.time", "error"
    """An answer that should have set the clock right was not believed."""
    ALERTS_FAILED = "alerts.failed"
    """Looking for alerts failed; the next turn tries again."""
    ALERT_NOT_SENT = "alert.not_sent", "channel", "error"
    """A receiver of alerts did not take one; it is sent again."""
    BROKER_RESTARTED = "broker.restarted"
    """The hub's Mosquitto had ended and was started again."""
    BUS_DISCONNECTED = "bus.disconnected", "reason"
    """The connection to the broker ended; it is made again."""
    BUS_HANDLER_FAILED = "bus.handler_failed"
    """A message could not be worked on because of a fault of ours; a traceback follows."""
    DATA_LOST = "data.lost", "error", "hint"
    """The encrypted rows cannot be opened; updates and serving go on without them."""
    FEDERATED_REFUSED = "federated.refused", "code", "error"
    """A question of the hub was not answered."""
    INGEST_FAILED = "ingest.failed", "topic"
    """A message of a spoke could not be kept; the spoke sends it again."""
    PROCESS_ENDED = "process.ended"
    """The program ended by an exception that nobody caught; a traceback follows."""
    PROCESS_LOOP_FAULT = "process.loop_fault"
    """The event loop met a fault; a traceback follows."""
    PROCESS_THREAD_ENDED = "process.thread_ended"
    """A thread ended by an exception that nobody caught; a traceback follows."""
    PROCESS_UNRAISABLE = "process.unraisable"
    """An exception where none can be raised, as in a destructor; a traceback follows."""
    SERVE_CAPTURE_FAULT = "serve.capture_fault", "error"
    """Served rows could not be kept; answers go on."""
    SERVE_CHOICE_OFF = "serve.choice_off", "file", "engine", "error"
    """The engine that was chosen for a file does not give the golden outputs any more; another is chosen."""
    SERVE_ENGINE_FELL = "serve.engine_fell", "engine", "mode", "error"
    """An engine crashed or hung in its trial."""
    SERVE_HANDLER_FAULT = "serve.handler_fault"
    """A request met a fault of ours and was answered 500; a traceback follows."""
    SERVE_NO_TRIAL = "serve.no_trial", "error"
    """The trial of an engine could not be started."""
    SERVE_REFUSED = "serve.refused", "error"
    """A worker process could not start."""
    SERVE_SLOTS_UNREADABLE = "serve.slots_unreadable", "error"
    """`slots.json` is damaged; health says so too, and the agent can put it right."""
    SERVE_POOL_STARTED = "serve.pool_started", "port", "workers"
    """All worker processes of the server answer."""
    SERVE_STARTED = "serve.started", "port", "models"
    """The server, or one of its workers, answers; models: those that are loaded."""
    SERVE_WORKER_FALLEN = "serve.worker_fallen", "worker", "status", "pause_s"
    """A worker process ended and is started again after a pause."""
    SUPERVISE_FALLEN = "supervise.fallen", "part", "status", "pause_s"
    """Agent or server ended and is started again after a pause."""
    SUPERVISE_FINAL = "supervise.final", "part", "status"
    """Agent or server ended with a status that another start would not change."""
    TURN_FAILED = "turn.failed"
    """A background loop of the hub failed; the next turn tries again."""
    UPKEEP_FAILED = "upkeep.failed", "part", "code", "error"
    """A periodic task of the agent failed; it is tried again."""
