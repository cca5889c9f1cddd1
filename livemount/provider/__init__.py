"""The project's own Pulumi resources: a provider plug-in that the engine finds as `pulumi-resource-livemount`."""
