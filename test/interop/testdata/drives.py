# Reads JSON on standard input: merged user data by name, and a directory as AltCloud
# mounts it; says as what cloud-init takes them.
import json, sys, tempfile
from cloudinit import handlers, helpers, user_data
from cloudinit.handlers.cloud_config import CloudConfigPartHandler
from cloudinit.sources import DataSourceAltCloud

asked = json.load(sys.stdin)
paths = helpers.Paths({"cloud_dir": tempfile.mkdtemp(), "run_dir": tempfile.mkdtemp()})


def taken(blob):
    parts = []
    config = CloudConfigPartHandler(paths)
    config._write_cloud_config = lambda: None
    config.handle_part(None, handlers.CONTENT_START, None, None, None, None)
    for part in user_data.UserDataProcessor(paths).process(blob).walk():
        if part.get_content_maintype() == "multipart":
            continue
        payload = part.get_payload(decode=True).decode()
        parts.append([part.get_content_type(), payload])
        if part.get_content_type() == "text/cloud-config":
            config.handle_part(None, "text/cloud-config", part.get_filename(), payload, None, dict(part))
    merged = dict(config.cloud_buf or {})
    config.handle_part(None, handlers.CONTENT_END, None, None, None, None)
    return {"parts": parts, "config": merged or dict(config.cloud_buf or {})}


json.dump(
    {
        "merged": {name: taken(blob) for name, blob in asked["merged"].items()},
        "altcloud": DataSourceAltCloud.read_user_data_callback(asked["altcloud"]),
    },
    sys.stdout,
)
