package dockerapi

import (
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
)

// This file shapes answers for clients of older API versions, where real clients read what newer ones dropped.

// legacyEvent has the fields that said before 1.52 what Type, Action and Actor say now. All versions get them: docker-compose
// 1.29 takes whatever version the server offers, and reads them.
type legacyEvent struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	events.Message
}

func shapeEvent(m events.Message) any {
	if m.Type != events.ContainerEventType && m.Type != events.ImageEventType {
		return m
	}
	e := legacyEvent{Status: string(m.Action), ID: m.Actor.ID, Message: m}
	if m.Type == events.ContainerEventType {
		e.From = m.Actor.Attributes["image"]
	}
	return e
}

// legacyInspect has the addresses on the default network beside the list of networks, as before 1.52: scripts
// and test libraries read .NetworkSettings.IPAddress.
type legacyInspect struct {
	container.InspectResponse
	NetworkSettings *legacyNetworkSettings
}

type legacyNetworkSettings struct {
	*container.NetworkSettings
	Bridge                 string
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []string
	SecondaryIPv6Addresses []string
	EndpointID             string
	Gateway                string
	GlobalIPv6Address      string
	GlobalIPv6PrefixLen    int
	IPAddress              string
	IPPrefixLen            int
	IPv6Gateway            string
	MacAddress             string
}

func (c *call) shapeInspect(r container.InspectResponse) any {
	if c.version.atLeast(52) || r.NetworkSettings == nil {
		return r
	}
	n := &legacyNetworkSettings{NetworkSettings: r.NetworkSettings}
	if e := r.NetworkSettings.Networks[network.NetworkBridge]; e != nil {
		n.EndpointID, n.MacAddress = e.EndpointID, e.MacAddress.String()
		n.IPPrefixLen, n.GlobalIPv6PrefixLen = e.IPPrefixLen, e.GlobalIPv6PrefixLen
		for _, a := range []struct {
			to   *string
			from interface {
				IsValid() bool
				String() string
			}
		}{{&n.IPAddress, e.IPAddress}, {&n.Gateway, e.Gateway}, {&n.GlobalIPv6Address, e.GlobalIPv6Address},
			{&n.IPv6Gateway, e.IPv6Gateway}} {
			if a.from.IsValid() {
				*a.to = a.from.String()
			}
		}
	}
	return legacyInspect{InspectResponse: r, NetworkSettings: n}
}

// legacyImage and legacyImageInspect have the size's second name, dropped in 1.44.
type legacyImage struct {
	image.Summary
	VirtualSize int64
}

// ContainerConfig, dropped in 1.45, all versions get: docker-compose 1.29, which takes whatever version the server offers, makes no
// service anew without it.
type legacyImageInspect struct {
	image.InspectResponse
	VirtualSize     int64 `json:",omitempty"`
	ContainerConfig any
}

func (c *call) shapeImageInspect(r image.InspectResponse) any {
	out := legacyImageInspect{InspectResponse: r, ContainerConfig: r.Config}
	if r.Config == nil {
		out.ContainerConfig = struct{}{}
	}
	if !c.version.atLeast(44) {
		out.VirtualSize = r.Size
	}
	return out
}

// legacyDiskUsage is the answer of /system/df before 1.52: lists, which the client adds up.
type legacyDiskUsage struct {
	LayersSize  int64
	Images      []image.Summary
	Containers  []container.Summary
	Volumes     []volume.Volume
	BuildCache  []build.CacheRecord
	BuilderSize int64
}

func legacyDiskUsageOf(u system.DiskUsage) legacyDiskUsage {
	var l legacyDiskUsage
	if u.ImageUsage != nil {
		l.LayersSize, l.Images = u.ImageUsage.TotalSize, orList(u.ImageUsage.Items)
	}
	if u.ContainerUsage != nil {
		l.Containers = orList(u.ContainerUsage.Items)
	}
	if u.VolumeUsage != nil {
		l.Volumes = orList(u.VolumeUsage.Items)
	}
	if u.BuildCacheUsage != nil {
		l.BuildCache, l.BuilderSize = orList(u.BuildCacheUsage.Items), u.BuildCacheUsage.TotalSize
	}
	return l
}

// orList makes a nil list an empty one, which is not null in JSON.
func orList[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}
