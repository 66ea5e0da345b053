/* SPDX-License-Identifier: Apache-2.0 */
#include "cgroup_pod.h"

#include "test.h"

#include <string.h>

#define UID	  "0b7a2f3e-1c2d-4e5f-8a9b-0c1d2e3f4a5b"
#define SYSTEMD	  "0b7a2f3e_1c2d_4e5f_8a9b_0c1d2e3f4a5b"
#define OTHER	  "0b7a2f3e-1c2d-4e5f-8a9b-0c1d2e3f4a5c"
#define HASH	  "d41d8cd98f00b204e9800998ecf8427e"
#define CONTAINER "4f1c0c9a5d1b4e6f8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f"

static const char *uid_of(const char *text)
{
	static char uid[POD_UID_SIZE];

	return cgroup_pod_uid(text, uid) ? uid : "none";
}

TEST(kubelet_with_cgroupfs)
{
	CHECK_STR(uid_of("/kubepods/burstable/pod" UID "/" CONTAINER), UID);
	CHECK_STR(uid_of("/kubepods/pod" UID), UID);
	CHECK_STR(uid_of("12:memory:/kubepods/besteffort/pod" UID "/" CONTAINER "\n"
			 "0::/kubepods/besteffort/pod" UID "/" CONTAINER "\n"),
		  UID);
	return TEST_OK;
}

TEST(kubelet_with_systemd)
{
	CHECK_STR(
		uid_of("0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" SYSTEMD
		       ".slice/cri-containerd-" CONTAINER ".scope\n"),
		UID);
	CHECK_STR(uid_of("0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" SYSTEMD
			 ".slice/crio-" CONTAINER ".scope"),
		  UID);
	return TEST_OK;
}

TEST(static_pods_are_named_by_the_hash_of_their_manifest)
{
	CHECK_STR(uid_of("/kubepods/burstable/pod" HASH "/" CONTAINER), HASH);
	CHECK_STR(uid_of("0::/kubepods.slice/kubepods-pod" HASH ".slice/crio-" CONTAINER ".scope"),
		  HASH);
	CHECK_STR(uid_of("/kubepods/podD41D8CD98F00B204E9800998ECF8427E"), HASH);
	CHECK_STR(uid_of("1:cpu:/kubepods/pod" UID "\n0::/kubepods/pod" HASH "\n"), "none");
	return TEST_OK;
}

TEST(letters_are_compared_as_the_api_writes_them)
{
	CHECK_STR(uid_of("/kubepods/pod0B7A2F3E-1C2D-4E5F-8A9B-0C1D2E3F4A5B"), UID);
	return TEST_OK;
}

TEST(two_different_pods_are_no_pod)
{
	CHECK_STR(uid_of("1:cpu:/kubepods/pod" UID "\n0::/kubepods/pod" OTHER "\n"), "none");
	return TEST_OK;
}

TEST(what_is_no_pod)
{
	static const char *const texts[] = {
		"",
		"0::/\n",
		"0::/system.slice/containerd.service\n",
		"/kubepods/pod",
		"/kubepods/pod0b7a2f3e-1c2d-4e5f-8a9b-0c1d2e3f4a5", /* a digit too few */
		"/kubepods/pod" UID "f",			    /* one too many */
		"/kubepods/tripod" UID,
		"/kubepods/pod" UID ".scope",
		"/kubepods/pod" HASH "0",
		"/kubepods/pod" HASH "-0",
		"/kubepods/pod" HASH ".scope",
		"/kubepods/podd41d8cd98f00b204e9800998ecf8427", /* a digit too few */
		"/kubepods/pod" CONTAINER,
		"/kubepods/podXb7a2f3e-1c2d-4e5f-8a9b-0c1d2e3f4a5b",
		"/kubepods/pod0b7a2f3e01c2d04e5f08a9b00c1d2e3f4a5b",
	};

	for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
		CHECK_STR(uid_of(texts[i]), "none");
	return TEST_OK;
}
