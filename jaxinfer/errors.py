"""Every error a user can cause, as one tree.

    JaxInferError
    ├── UsageError(ValueError)          a value somebody gave us is wrong
    │   ├── ConfigError                 a model configuration: unknown architecture, field or value
    │   ├── InvalidParameter            a sampling or engine parameter: NaN, out of range
    │   ├── InvalidPrompt               empty, ids outside the vocabulary, not text
    │   │   └── PromptTooLong           longer than the context, or than the pages of the whole pool
    │   └── ChatTemplateError           a chat template that is missing, hostile or fails
    ├── ModelNotFound(FileNotFoundError) no such directory, file, hub id or known name
    ├── CheckpointError                 the files of a model
    │   ├── CorruptCheckpoint           truncated, sizes that lie, paths that leave the directory
    │   ├── MissingParameters           the model wants parameters that no file holds
    │   ├── UnexpectedTensors           the files hold tensors that no parameter takes
    │   └── ShapeMismatch               both have it, with different shapes
    ├── TokenizerError                  a tokenizer that cannot be read or is of an unknown kind
    ├── Unsupported(NotImplementedError) a clear no: the feature exists elsewhere, not in this build
    ├── UnsatisfiableGuide              structured_outputs that leave nothing to say
    ├── CapacityError                   does not fit: memory, pages, queue
    ├── DeadlinePassed                  no time is left for a request, or not enough
    ├── DuplicateRequest(ValueError)    a request id that is in use
    ├── EngineClosed(RuntimeError)      submitted after close()
    ├── Asleep(RuntimeError)            submitted while the weights are not on the device
    └── StepFailed(RuntimeError)        the device failed during a step

Each message names the value, what is allowed, and the fix.
"""


class JaxInferError(Exception):
    """Base of everything jaxinfer raises on purpose."""


class UsageError(JaxInferError, ValueError):
    """A value somebody gave us is wrong; the message says which are allowed."""


class ConfigError(UsageError):
    """A model configuration with an unknown architecture, field or value."""


class InvalidParameter(UsageError):
    """A sampling or engine parameter that is NaN, out of range or contradicts another."""


class InvalidPrompt(UsageError):
    """A prompt that is empty, not text, or holds ids outside the vocabulary."""


class PromptTooLong(InvalidPrompt):
    """A prompt that leaves no room for a single new token in the context or the page pool."""


class ChatTemplateError(UsageError):
    """A chat template that is missing, forbidden by the sandbox, or fails on these messages."""


class ModelNotFound(JaxInferError, FileNotFoundError):
    """Nothing of that name: no directory, file, hub id, architecture or known model."""


class CheckpointError(JaxInferError):
    """Something is wrong with the files of a model."""


class CorruptCheckpoint(CheckpointError):
    """Truncated or hostile files: sizes that lie, paths that leave the directory."""


class MissingParameters(CheckpointError):
    """The model has parameters that no tensor in the files fills; all are listed."""


class UnexpectedTensors(CheckpointError):
    """The files hold tensors that no parameter takes; all are listed."""


class ShapeMismatch(CheckpointError):
    """Tensors whose shapes differ from their parameters'; all are listed."""


class TokenizerError(JaxInferError):
    """A tokenizer that cannot be read, or whose kind is not known."""


class Unsupported(JaxInferError, NotImplementedError):
    """A clear no: known elsewhere, not supported by this build."""


class UnsatisfiableGuide(JaxInferError):
    """Structured outputs that no text matches, or none that the rest of the request allows."""


class CapacityError(JaxInferError):
    """Does not fit into what there is: memory, pages, queue."""


class DeadlinePassed(JaxInferError):
    """The request cannot end in the time that it was given."""


class DuplicateRequest(JaxInferError, ValueError):
    """A request id that is already in use."""


class EngineClosed(JaxInferError, RuntimeError):
    """The engine was closed; nothing more can be submitted."""


class Asleep(JaxInferError, RuntimeError):
    """The model sleeps: its weights are not on the device, and nothing is taken until it wakes."""


class StepFailed(JaxInferError, RuntimeError):
    """The device failed during a step; the requests in flight end with this as their reason."""
