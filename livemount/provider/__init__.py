"""The Pulumi provider `pulumi-resource-livemount`: our resources, with truthful read and diff."""
