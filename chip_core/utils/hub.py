"""Whether the hub can be reached, found out in a moment.

`datasets` and `transformers` try again for half a minute, and say so line by line.
"""

from __future__ import annotations

from typing import Literal

from chip_core.utils.errors import brief

_SECONDS = 5.0  # that an answer is waited for


def unreachable(
    kind: Literal["dataset", "model"], name: str, revision: str | None = None
) -> str | None:
    """Return why the hub cannot be asked for a name; None if it answers, whatever it says."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    ask = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
    try:
        ask(name, revision=revision, timeout=_SECONDS)
    except HfHubHTTPError as error:
        code = error.response.status_code
        return f"it answers {code}" if code >= 500 else None
    except ValueError:  # a name that no repository can have: told when it is loaded
        return None
    except Exception as error:  # whatever is between here and there
        return brief(error)
    return None
