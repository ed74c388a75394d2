"""Drives cloud-init's client and datasource for the Triton metadata protocol.

usage: smartos.py DEVICE DIRECTORY

Prints what they saw as JSON; cloud-init's debug log goes to standard error.
"""
import json
import logging
import sys

from cloudinit import helpers, util
from cloudinit.net import netplan, network_state
from cloudinit.sources import DataSourceSmartOS as smartos

device, directory = sys.argv[1:]
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, force=True)
# Plain cloud-init: only what names the machine it runs on is set here.
smartos.LEGACY_USER_D = directory
smartos.DataSourceSmartOS.smartos_type = smartos.SMARTOS_ENV_KVM

seen = {}
client = smartos.JoyentMetadataSerialClient(device, timeout=10)
with client:
    seen["UUID"] = client.get("sdc:uuid")
    seen["Missing"] = client.get("com.example:missing")
    for _ in range(2):
        client.put("com.example:note", "line one\nline two: \u00fc")
    seen["Note"] = client.get("com.example:note")
    seen["Keys"] = client.list()
    client.delete("com.example:note")
    client.delete("com.example:note")
    seen["Deleted"] = client.get("com.example:note")
    seen["KeysAfter"] = client.list()
    client.put("sdc:uuid", "evil")
    replies = []
    readline = client._readline
    client._readline = lambda: replies.append(readline()) or replies[-1]
    client.put("sdc:uuid", "evil")
    seen["Readonly"] = replies[0]

source = smartos.DataSourceSmartOS(
    {"datasource": {"SmartOS": {"serial_device": device}}},
    None,
    helpers.Paths({"cloud_dir": directory, "run_dir": directory}),
)
assert source._get_data()
seen["Metadata"] = source.metadata
seen["Userdata"] = source.userdata_raw
seen["Vendordata"] = source.vendordata_raw
vendor = util.load_yaml(source.vendordata_raw)
merged = util.mergemanydict([vendor, source.get_config_obj()])
seen["FSSetup"] = merged["fs_setup"]
state = network_state.parse_net_config_data(source.network_config)
seen["Netplan"] = netplan.Renderer({})._render_content(state)
json.dump(seen, sys.stdout)
