"""Reads a guest's metadata with cloud-init's own clients.

usage: metadata.py URL

Prints what they saw as JSON. Afterwards it phones home, as cloud-init's module
does, and reads again.
"""
import json
import os
import sys
import time

from cloudinit import sources, url_helper, util
from cloudinit.net import netplan, network_state
from cloudinit.sources.helpers import ec2, openstack

url = sys.argv[1]
os.environ["no_proxy"] = "*"
waits = []  # what cloud-init would have slept before it tried again
time.sleep = waits.append


def with_token(_):
    token = url_helper.readurl(
        url + "/latest/api/token", request_method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "21600"})
    return {"X-aws-ec2-metadata-token": token.contents.decode()}


# It would ask the link-local address, which is this machine's.
openstack.MetadataReader._read_ec2_metadata = lambda _: ec2.get_instance_metadata("latest", url, headers_cb=with_token)


def rendered(config):
    return netplan.Renderer({})._render_content(network_state.parse_net_config_data(config))


def text(data):
    return data.decode() if isinstance(data, bytes) else data


def seen():
    found = openstack.MetadataReader(url).read_v2()
    config = openstack.convert_net_json(found["networkdata"], known_macs={"52:54:00:12:34:56": "ens3", "52:54:00:12:34:57": "ens4"})
    meta, user, vendor = util.read_seeded(url + "/nocloud/")[:3]
    network = url_helper.readurl(url + "/nocloud/network-config").contents
    return {
        "OpenStack": found["metadata"],
        "OpenStackUser": text(found.get("userdata") or ""),
        "OpenStackVendor": sources.convert_vendordata(found["vendordata"]),
        "OpenStackNetwork": rendered(config),
        "NoCloud": meta,
        "NoCloudUser": text(user),
        "NoCloudVendor": text(vendor),
        "NoCloudNetwork": rendered(util.load_yaml(network)),
        "EC2": ec2.get_instance_metadata("latest", url, headers_cb=with_token),
        "EC2User": text(ec2.get_instance_userdata("latest", url, headers_cb=with_token)),
        "Waits": waits,
    }


before = seen()
url_helper.readurl(url + "/imprint/v1/phone-home", data={"hostname": "web-1", "pub_key_rsa": "ssh-rsa AAAA"})
json.dump({"Before": before, "After": seen()}, sys.stdout)
