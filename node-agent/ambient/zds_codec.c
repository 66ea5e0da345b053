/* SPDX-License-Identifier: Apache-2.0 */
#include "zds_codec.h"

#include "error.h"
#include "zds.pb-c.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* Messages are unpacked through their descriptors, all by the same few lines. */
static void *unpack(const ProtobufCMessageDescriptor *type, const void *data, size_t size,
		    size_t max, struct error *err)
{
	void *message;

	if (size == 0 || size > max) {
		error_set(err, EBADMSG, "%s of %zu bytes", type->short_name, size);
		return NULL;
	}
	message = protobuf_c_message_unpack(type, NULL, size, data);
	if (!message)
		error_set(err, EBADMSG, "%zu bytes that are no %s", size, type->short_name);
	return message;
}

static void free_message(void *message)
{
	protobuf_c_message_free_unpacked(message, NULL);
}

static int pack(const ProtobufCMessage *message, uint8_t *buf, size_t room, size_t *ret_size,
		struct error *err)
{
	size_t size = protobuf_c_message_get_packed_size(message);

	if (size > room)
		return error_set(err, EMSGSIZE, "%s of %zu bytes, the limit is %zu",
				 message->descriptor->short_name, size, room);
	*ret_size = protobuf_c_message_pack(message, buf);
	return 0;
}

/* ---- requests ------------------------------------------------------------------------------- */

/*
 * Names of Kubernetes and ids are visible ASCII. Anything else (protobuf demands UTF-8, and ztunnel
 * ends the connection over less) cannot be what was meant.
 */
static int check_text(const char *text, const char *what, const struct zds_pod *pod,
		      struct error *err)
{
	const char *uid = pod->uid ? pod->uid : "";

	if (!text || !*text)
		return error_set(err, EINVAL, "pod %s (uid \"%s\") has no %s",
				 pod->name ? pod->name : "without a name", uid, what);
	for (const char *c = text; *c; c++) {
		if (*c < '!' || *c > '~')
			return error_set(err, EINVAL,
					 "%s of pod %s (uid \"%s\") holds a character with code %d",
					 what, pod->name ? pod->name : "", uid, (unsigned char)*c);
	}
	return 0;
}

static int check_uid(const struct zds_pod *pod, struct error *err)
{
	int r = check_text(pod->uid, "uid", pod, err);

	if (!r && strlen(pod->uid) > ZDS_UID_MAX)
		return error_set(err, EINVAL, "uid of pod %s has more than %d bytes: \"%.40s...\"",
				 pod->name ? pod->name : "", ZDS_UID_MAX, pod->uid);
	return r;
}

static int check_pod(const struct zds_pod *pod, struct error *err)
{
	int r = check_uid(pod, err);

	if (!r)
		r = check_text(pod->name, "name", pod, err);
	if (!r)
		r = check_text(pod->ns, "namespace", pod, err);
	if (!r)
		r = check_text(pod->service_account, "service account", pod, err);
	return r;
}

static int encode_add(const struct zds_pod *pod, struct zds_packet *ret, struct error *err)
{
	Zds__Workload workload = ZDS__WORKLOAD__INIT;
	Zds__Add add = ZDS__ADD__INIT;
	Zds__Request request = ZDS__REQUEST__INIT;
	int r = check_pod(pod, err);

	if (r)
		return r;
	workload.name = (char *)pod->name;
	workload.namespace_ = (char *)pod->ns;
	workload.service_account = (char *)pod->service_account;
	add.uid = (char *)pod->uid;
	add.workload = &workload;
	request.payload_case = ZDS__REQUEST__PAYLOAD_ADD;
	request.add = &add;
	r = pack(&request.base, ret->data, sizeof(ret->data), &ret->size, err);
	return r ? error_wrap(err, "pod %.63s/%.253s (uid \"%s\")", pod->ns, pod->name, pod->uid)
		 : 0;
}

static int encode_keep(const struct zds_pod *pod, struct zds_packet *ret, struct error *err)
{
	Zds__Keep keep = ZDS__KEEP__INIT;
	Zds__Request request = ZDS__REQUEST__INIT;
	int r = check_uid(pod, err);

	if (r)
		return r;
	keep.uid = (char *)pod->uid;
	request.payload_case = ZDS__REQUEST__PAYLOAD_KEEP;
	request.keep = &keep;
	return pack(&request.base, ret->data, sizeof(ret->data), &ret->size, err);
}

static int encode_del(const struct zds_pod *pod, struct zds_packet *ret, struct error *err)
{
	Zds__Del del = ZDS__DEL__INIT;
	Zds__Request request = ZDS__REQUEST__INIT;
	int r = check_uid(pod, err);

	if (r)
		return r;
	del.uid = (char *)pod->uid;
	request.payload_case = ZDS__REQUEST__PAYLOAD_DEL;
	request.del = &del;
	return pack(&request.base, ret->data, sizeof(ret->data), &ret->size, err);
}

static int encode_snapshot_sent(struct zds_packet *ret, struct error *err)
{
	Zds__SnapshotSent sent = ZDS__SNAPSHOT_SENT__INIT;
	Zds__Request request = ZDS__REQUEST__INIT;

	request.payload_case = ZDS__REQUEST__PAYLOAD_SNAPSHOT_SENT;
	request.snapshot_sent = &sent;
	return pack(&request.base, ret->data, sizeof(ret->data), &ret->size, err);
}

int zds_request_encode(const struct zds_request *req, struct zds_packet *ret, struct error *err)
{
	switch (req->kind) {
	case ZDS_ADD:
		return encode_add(&req->pod, ret, err);
	case ZDS_KEEP:
		return encode_keep(&req->pod, ret, err);
	case ZDS_DEL:
		return encode_del(&req->pod, ret, err);
	case ZDS_SNAPSHOT_SENT:
		return encode_snapshot_sent(ret, err);
	}
	return error_set(err, EINVAL, "no request of kind %d", (int)req->kind);
}

static int read_request(const Zds__Request *request, struct zds_request *ret, struct error *err)
{
	switch ((int)request->payload_case) {
	case ZDS__REQUEST__PAYLOAD_ADD:
		ret->kind = ZDS_ADD;
		ret->pod.uid = request->add->uid;
		if (!request->add->workload)
			return error_set(err, EBADMSG, "an Add without its workload");
		ret->pod.name = request->add->workload->name;
		ret->pod.ns = request->add->workload->namespace_;
		ret->pod.service_account = request->add->workload->service_account;
		return check_pod(&ret->pod, err);
	case ZDS__REQUEST__PAYLOAD_KEEP:
		ret->kind = ZDS_KEEP;
		ret->pod.uid = request->keep->uid;
		return check_uid(&ret->pod, err);
	case ZDS__REQUEST__PAYLOAD_DEL:
		ret->kind = ZDS_DEL;
		ret->pod.uid = request->del->uid;
		return check_uid(&ret->pod, err);
	case ZDS__REQUEST__PAYLOAD_SNAPSHOT_SENT:
		ret->kind = ZDS_SNAPSHOT_SENT;
		return 0;
	}
	return error_set(err, EBADMSG, "a request for nothing that is known");
}

int zds_request_decode(const void *data, size_t size, struct zds_request *ret, struct error *err)
{
	struct zds_request req = {0};

	req.message = unpack(&zds__request__descriptor, data, size, ZDS_REQUEST_MAX, err);
	if (!req.message)
		return -EBADMSG;
	if (read_request(req.message, &req, err)) {
		free_message(req.message);
		err->code = EBADMSG;
		return -EBADMSG;
	}
	*ret = req;
	return 0;
}

void zds_request_done(struct zds_request *req)
{
	free_message(req->message);
	req->message = NULL;
}

/* ---- what ztunnel says ---------------------------------------------------------------------- */

int zds_response_encode(const char *error, uint8_t *buf, size_t size, size_t *ret_size,
			struct error *err)
{
	Zds__Ack ack = ZDS__ACK__INIT;
	Zds__Response response = ZDS__RESPONSE__INIT;

	ack.error = (char *)error;
	response.payload_case = ZDS__RESPONSE__PAYLOAD_ACK;
	response.ack = &ack;
	return pack(&response.base, buf, size, ret_size, err);
}

int zds_response_decode(const void *data, size_t size, char ret_error[static ZDS_ERROR_TEXT_SIZE],
			struct error *err)
{
	Zds__Response *response =
		unpack(&zds__response__descriptor, data, size, ZDS_RESPONSE_MAX, err);
	bool is_ack;

	if (!response)
		return -EBADMSG;
	is_ack = response->payload_case == ZDS__RESPONSE__PAYLOAD_ACK;
	if (is_ack)
		snprintf(ret_error, ZDS_ERROR_TEXT_SIZE, "%s", response->ack->error);
	free_message(response);
	return is_ack ? 0 : error_set(err, EBADMSG, "a response without an answer");
}

int zds_hello_encode(int version, struct zds_packet *ret, struct error *err)
{
	Zds__Hello hello = ZDS__HELLO__INIT;

	hello.version = (Zds__Version)version;
	return pack(&hello.base, ret->data, sizeof(ret->data), &ret->size, err);
}

int zds_hello_decode(const void *data, size_t size, int *ret_version, struct error *err)
{
	Zds__Hello *hello = unpack(&zds__hello__descriptor, data, size, ZDS_REQUEST_MAX, err);

	if (!hello)
		return -EBADMSG;
	*ret_version = (int)hello->version;
	free_message(hello);
	return 0;
}
