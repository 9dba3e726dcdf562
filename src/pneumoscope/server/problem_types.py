"""The kinds of problems that the service answers with: stable codes, which programs may compare."""

from __future__ import annotations

from typing import NamedTuple


class ProblemType(NamedTuple):
    """A kind of problem; `title` says what it is, `advice` what to do."""

    status: int
    title: str
    advice: str


PROBLEMS = {
    "body-incomplete": ProblemType(400, "The body ended too early", "Send it again."),
    "request-malformed": ProblemType(400, "The request is malformed", "Correct the client or the proxy: see `detail`."),
    "token-missing": ProblemType(401, "The token is missing or wrong", "Send `Authorization: Bearer TOKEN`."),
    "host-refused": ProblemType(403, "The host name is not this machine's", "Call `127.0.0.1`, or use a token."),
    "forbidden": ProblemType(403, "The caller may not do this", "See `detail`; ask the person who runs the service."),
    "reviewer-differs": ProblemType(403, "The review names somebody else", "Omit `reviewer`."),
    "answer-withheld": ProblemType(
        403, "The model's answer is withheld until you have read the image", "Commit a reading first."
    ),
    "not-found": ProblemType(404, "There is nothing at this address", "See `/docs`."),
    "prediction-not-found": ProblemType(404, "No prediction has this id", "It may have been deleted."),
    "review-not-found": ProblemType(404, "The prediction has no such review", "List its reviews."),
    "case-not-found": ProblemType(404, "There is no teaching case of this number", "List them: `/v1/teaching`."),
    "model-not-found": ProblemType(404, "No model of this name is served", "List the models: `/v1/models`."),
    "job-not-found": ProblemType(404, "No job has this id", "Jobs are kept for a day; send the files again."),
    "image-not-kept": ProblemType(
        404, "The image was not kept", "Start the service with `pneumoscope serve --keep-images FOLDER`."
    ),
    "method-not-allowed": ProblemType(405, "The method is not allowed here", "See `/docs`."),
    "body-slow": ProblemType(408, "The body arrived too slowly", "Send it again, in smaller requests."),
    "no-evidence": ProblemType(409, "There is no evidence to show", "See `detail`."),
    "reading-committed": ProblemType(409, "The image was read before", "Send the later reading with `with_ai=true`."),
    "reading-missing": ProblemType(409, "The image was not read yet", "First send a reading with `with_ai=false`."),
    "key-in-use": ProblemType(409, "A request with this key is in progress", "Try again after `Retry-After` seconds."),
    "node-schema": ProblemType(409, "The DICOM node has another version", "Run both with the same version."),
    "conflict": ProblemType(409, "The state of the service does not permit it", "See `detail`."),
    "prediction-deleted": ProblemType(
        410, "The prediction was deleted before the request was finished", "Nothing of it is kept."
    ),
    "file-too-large": ProblemType(413, "A file is too large", "Reduce or compress it."),
    "request-too-large": ProblemType(413, "The request is too large", "Send its files in several requests."),
    "media-type-unsupported": ProblemType(415, "The content type is not supported", "Send a form, or one image."),
    "not-an-image": ProblemType(
        415, "The file has no supported image format", "Send JPEG, PNG, TIFF, DICOM and so on."
    ),
    "package-missing": ProblemType(
        415, "The service lacks a package to read the file", "Install the package it names."
    ),
    "image-damaged": ProblemType(422, "The file is damaged or truncated", "Copy it again from its source."),
    "image-unsupported": ProblemType(422, "The image is of an unsupported kind", "Export it again as `detail` says."),
    "image-too-large": ProblemType(422, "The image has too many pixels", "Export it at a smaller size."),
    "image-costly": ProblemType(
        422, "The image cannot be decoded within the limits of time and memory", "Save it again, as PNG."
    ),
    "not-a-radiograph": ProblemType(422, "Not a projection radiograph", "Set `any_modality=true` to read it anyway."),
    "out-of-scope": ProblemType(422, "Outside the model's intended use", "Use a model that is meant for such images."),
    "files-unreadable": ProblemType(422, "None of the files can be predicted", "See `files`."),
    "no-file": ProblemType(422, "The request contains no file", "Send files as form parts that have a file name."),
    "form-invalid": ProblemType(422, "The form cannot be parsed", "Let your HTTP library write the form."),
    "name-invalid": ProblemType(422, "A file name cannot be decoded", "Send it in UTF-8."),
    "parameter-invalid": ProblemType(422, "A parameter or field is not valid", "See `errors`."),
    "cursor-invalid": ProblemType(422, "The cursor is not valid", "Begin again without a cursor."),
    "no-heatmaps": ProblemType(422, "The model has no heatmaps", "Omit `heatmap=true`."),
    "too-many-pictures": ProblemType(422, "Pictures of too many images at once", "Send fewer images in one request."),
    "no-pictures": ProblemType(422, "A job gives no pictures", "Omit `heatmap` and `picture`."),
    "review-invalid": ProblemType(422, "The review is inconsistent, or lacks a class", "See `detail`."),
    "reading-invalid": ProblemType(422, "The reading names no class of the model", "See `detail`."),
    "key-reused": ProblemType(422, "The key was used for another request", "Use a new key for each new request."),
    "callback-refused": ProblemType(422, "The callback address is not allowed", "Ask the person who runs the service."),
    "too-many-guesses": ProblemType(429, "Too many wrong tokens", "Try again after `Retry-After` seconds."),
    "busy": ProblemType(429, "Too much is being processed", "Try again after `Retry-After` seconds."),
    "internal-error": ProblemType(500, "An internal error", "Report it."),
    "unavailable": ProblemType(503, "The service cannot answer now", "Try again after `Retry-After` seconds."),
    "storage-unavailable": ProblemType(503, "The database or a folder cannot be used", "Try again after a moment."),
    "job-lost": ProblemType(503, "The service ended before the job was finished", "Send the files again."),
}
# The code of a problem that states none.
OF_STATUS = {
    400: "body-incomplete", 401: "token-missing", 403: "forbidden", 404: "not-found", 405: "method-not-allowed",
    408: "body-slow", 409: "conflict", 413: "request-too-large", 415: "media-type-unsupported",
    422: "parameter-invalid", 429: "busy", 500: "internal-error", 503: "unavailable",
}  # fmt: skip
