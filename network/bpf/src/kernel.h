// What tap.c needs of the kernel's interface, written out: the object depends on the compiler alone, not on the headers
// that happen to be installed.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;

#define SEC(name) __attribute__((section(name), used))
// A call of its own: the stack has 512 bytes in all.
#define CALL static __attribute__((noinline))
#define INLINE static inline __attribute__((always_inline))

// Map definitions as libbpf and cilium/ebpf read them from BTF.
#define MAP_UINT(name, value) int(*name)[value]
#define MAP_TYPE(name, value) typeof(value) *name

enum {
	MAP_HASH = 1,
	MAP_PERCPU_HASH = 5,
	MAP_LRU_HASH = 9,
	MAP_LPM_TRIE = 11,
	NO_PREALLOC = 1,
};

// Verdicts of a classifier; the same for TCX and for clsact with direct action.
enum { TC_ACT_UNSPEC = -1, TC_ACT_SHOT = 2 };

// The context of a classifier, as far as it is read here. The offsets are the kernel's ABI.
struct __sk_buff {
	u32 len;
	u32 pkt_type;
	u32 mark;
	u32 queue_mapping;
	u32 protocol;
	u32 vlan_present;
	u32 vlan_tci;
	u32 vlan_proto;
	u32 priority;
	u32 ingress_ifindex;
	u32 ifindex;
};

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static u64 (*ktime_ns)(void) = (void *)5;
static long (*skb_store)(struct __sk_buff *skb, u32 off, const void *from, u32 len, u64 flags) = (void *)9;
static long (*l4_csum_replace)(struct __sk_buff *skb, u32 off, u64 from, u64 to, u64 flags) = (void *)11;
static long (*skb_load)(const struct __sk_buff *skb, u32 off, void *to, u32 len) = (void *)26;
static long (*skb_change_tail)(struct __sk_buff *skb, u32 len, u64 flags) = (void *)38;

#define htons(x) __builtin_bswap16(x)
#define htonl(x) __builtin_bswap32(x)
#define ntohs htons
