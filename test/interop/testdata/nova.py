"""Answers requests with Nova's own metadata handler, without a cloud.

Reads {"instance": …, "requests": [{"method", "path", "body"}, …]} and writes the
replies as JSON. The instance is in memory; what Nova would look up elsewhere is
given or empty, and everything else is Nova's.

With {"instance": …, "listen": [address, port], "workers": …} it serves the instance
until it is told to end, as nova-api-metadata does: in Nova's WSGI server under
eventlet, with its cache.
"""
import base64
import contextlib
import json
import sys
from unittest import mock

asked = json.load(sys.stdin)
if "listen" in asked:
    import nova.cmd  # noqa: F401, patches what eventlet needs before the others are there

from oslo_log import log
from oslo_config import cfg

import nova.conf

CONF = nova.conf.CONF
log.register_options(CONF)
CONF([], project="nova", default_config_files=[])

import webob  # noqa: E402
from nova import context, objects  # noqa: E402
from nova.api.metadata import base, handler, password  # noqa: E402
from nova.network import model  # noqa: E402
from nova.network import security_group_api  # noqa: E402

want = asked["instance"]
objects.register_all()
ctxt = context.RequestContext("user", want["project"])
CONF.set_override("dhcp_domain", want["domain"], group="api")
if "listen" not in asked:
    CONF.set_override("metadata_cache_expiration", 0, group="api")
CONF.set_override("vendordata_providers", ["StaticJSON"], group="api")
if want["vendorData"]:
    with open(sys.argv[1] + "/vendor.json", "w") as f:
        f.write(want["vendorData"])
    CONF.set_override("vendordata_jsonfile_path", f.name, group="api")

name, data = want["key"]
instance = objects.Instance(
    context=ctxt, id=1, uuid=want["uuid"], user_id="user", project_id=want["project"],
    hostname=want["hostname"], display_name=want["hostname"], host="host", launch_index=0,
    availability_zone=want["zone"], reservation_id=want["reservation"], image_ref=want["uuid"],
    kernel_id=None, ramdisk_id=None, root_device_name="/dev/vda", default_ephemeral_device=None,
    default_swap_device=None, device_metadata=None, numa_topology=None,
    key_name=name, key_data=data, metadata=want["meta"], system_metadata={},
    user_data=base64.b64encode(want["userData"].encode()).decode() if want["userData"] else None,
    flavor=objects.Flavor(name="imprint"), security_groups=objects.SecurityGroupList(objects=[]),
    keypairs=objects.KeyPairList(objects=[objects.KeyPair(name=name, type="ssh", public_key=data)]),
    ec2_ids=objects.EC2Ids(instance_id=want["ec2"], ami_id=want["ami"], kernel_id=None, ramdisk_id=None),
)


def subnet(s):
    gateway = model.IP(address=s["gateway"], type="gateway") if s["gateway"] else None
    return model.Subnet(
        cidr=s["cidr"], gateway=gateway, ips=[model.FixedIP(address=s["address"])],
        dns=[model.IP(address=a, type="dns") for a in s["dns"]],
        routes=[model.Route(cidr=r["cidr"], gateway=model.IP(address=r["gateway"], type="gateway")) for r in s["routes"]],
        **({"dhcp_server": "192.0.2.2"} if s["dhcp"] else {}),
    )


instance.info_cache = objects.InstanceInfoCache(instance_uuid=want["uuid"], network_info=model.NetworkInfo([
    model.VIF(
        id=v["name"], address=v["mac"], devname=v["name"], type="other",
        network=model.Network(id=v["name"], subnets=[subnet(s) for s in v["subnets"]], **({"mtu": v["mtu"]} if v["mtu"] else {})),
    ) for v in want["vifs"]
]))
instance.obj_reset_changes()


@contextlib.contextmanager
def target_cell(ctxt, _):
    yield ctxt


with (
    mock.patch.object(security_group_api, "get_instance_security_groups", return_value=[{"name": "default"}]),
    mock.patch.object(objects.Instance, "get_bdms", return_value=[]),
    mock.patch.object(objects.Instance, "save"),
    mock.patch.object(objects.Instance, "get_by_uuid", return_value=instance),
    mock.patch.object(objects.InstanceMapping, "get_by_instance_uuid"),
    mock.patch.object(context, "target_cell", target_cell),
    mock.patch.object(base, "get_metadata_by_address", lambda address: base.InstanceMetadata(instance, address)),
):
    app = handler.MetadataRequestHandler()
    if "listen" in asked:
        from nova import wsgi
        from oslo_service import service

        server = wsgi.Server("metadata", app, *asked["listen"])
        service.launch(CONF, server, workers=asked["workers"], restart_method="mutate").wait()
        sys.exit()
    replies = []
    for r in asked["requests"]:
        request = webob.Request.blank(r["path"], method=r["method"], body=r["body"].encode())
        request.remote_addr = "192.0.2.10"
        try:
            reply = request.get_response(app)
        except Exception as fault:  # what the WSGI server makes a 500 of
            reply = webob.Response(str(fault), status=500)
        replies.append({"status": reply.status_int, "type": reply.headers["Content-Type"], "body": reply.text})
json.dump(replies, sys.stdout)
