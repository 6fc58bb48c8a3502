BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0004');
CREATE TABLE dropped_objects (
	digest TEXT NOT NULL, 
	dropped_at TEXT NOT NULL, 
	CONSTRAINT pk_dropped_objects PRIMARY KEY (digest)
);
INSERT INTO "dropped_objects" VALUES('sha256:2095a604234b5063639bfc74d7d1c750835d145eb7fab1e67b15b27db3a3ce49','2026-11-21T21:31:38.861072+00:00');
INSERT INTO "dropped_objects" VALUES('sha256:3e4879fb5a1927832d2006787195d205ae510a766e433e2043f2c5bb9722c6d1','2026-11-21T21:31:38.861094+00:00');
INSERT INTO "dropped_objects" VALUES('sha256:8c6142ca6985e1d51913e68508121a768179cace1e8516e9b2a1bf4bd21587ad','2026-11-21T21:31:38.861097+00:00');
INSERT INTO "dropped_objects" VALUES('sha256:9777d28839a50e8b240b5bf769e62568bc1ac569ea6829a0c0e5f59829ab995c','2026-11-21T21:31:38.861100+00:00');
INSERT INTO "dropped_objects" VALUES('sha256:992a6eb9dc8e950055576ebb5f8273fe2073d5e9418d769b2add7ed7b9adc277','2026-11-21T21:31:38.861102+00:00');
INSERT INTO "dropped_objects" VALUES('sha256:c25ea3459eba98cfcd4206b4a44c521df8c10c007a46440e21d6f46b9316cd6f','2026-11-21T21:31:38.861104+00:00');
INSERT INTO "dropped_objects" VALUES('sha256:caa0b41b7f79d4056daa73617a92840566fd5113bc4113ea07db10b77dcb5d26','2026-11-21T21:31:38.861107+00:00');
INSERT INTO "dropped_objects" VALUES('sha256:d3d3b4b41f355e3d612d1ff0c30e2127e8b02a55d86c3c54eb1fcb1a9e1b6281','2026-11-21T21:31:38.861110+00:00');
INSERT INTO "dropped_objects" VALUES('sha256:d8b1d6ec1bf3d3696291ba4aedfa8d5913e891418b8ebbdc2734ab761d40cbba','2026-11-21T21:31:38.861113+00:00');
CREATE TABLE editors (
	id TEXT NOT NULL, 
	model_id INTEGER NOT NULL, 
	digest TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	per_fact BOOLEAN NOT NULL, 
	config TEXT NOT NULL, 
	scores TEXT NOT NULL, 
	CONSTRAINT pk_editors PRIMARY KEY (id), 
	CONSTRAINT fk_editors_model_id FOREIGN KEY(model_id) REFERENCES models (id)
);
INSERT INTO "editors" VALUES('editor-1',1,'sha256:61d093cbc44e4a4df24c14cfa0a2db1db62c3618b160e62a69466ccebfbbe232','2026-11-21T21:31:37.662065+00:00',1,'{"rank":4}','{"ES":0.9}');
INSERT INTO "editors" VALUES('unused',1,'sha256:61d093cbc44e4a4df24c14cfa0a2db1db62c3618b160e62a69466ccebfbbe232','2026-11-21T21:31:37.821593+00:00',0,'{"rank":8}','{"ES":null}');
CREATE TABLE entries (
	id TEXT NOT NULL, 
	model_id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	status TEXT NOT NULL, 
	parent TEXT, 
	fact_set_digest TEXT, 
	target TEXT, 
	editor_id TEXT, 
	active_digest TEXT NOT NULL, 
	source TEXT, 
	created_at TEXT NOT NULL, 
	command TEXT NOT NULL, 
	details TEXT NOT NULL, 
	CONSTRAINT pk_entries PRIMARY KEY (id), 
	CONSTRAINT uq_entries_model_id UNIQUE (model_id, number), 
	CONSTRAINT fk_entries_model_id FOREIGN KEY(model_id) REFERENCES models (id), 
	CONSTRAINT fk_entries_parent FOREIGN KEY(parent) REFERENCES entries (id), 
	CONSTRAINT fk_entries_fact_set_digest FOREIGN KEY(fact_set_digest) REFERENCES fact_sets (digest), 
	CONSTRAINT fk_entries_target FOREIGN KEY(target) REFERENCES entries (id), 
	CONSTRAINT fk_entries_editor_id FOREIGN KEY(editor_id) REFERENCES editors (id), 
	CONSTRAINT ck_entries_kind CHECK (kind IN ('register', 'apply', 'revert', 'rebase')), 
	CONSTRAINT ck_entries_status CHECK (status IN ('pending', 'applied'))
);
INSERT INTO "entries" VALUES('sha256:462d02be0120c6556b8c0527c4dd613e49083af1902a0b12cca2373d82404487',1,1,'register','applied',NULL,NULL,NULL,NULL,'sha256:cdf8149efa5fdfcc57e089ff825bde346e5828dacf816aa13a85a30c70236f07',NULL,'2026-11-21T21:31:37.616078+00:00','','{"architecture":"sha256:7912a59b41ea87778347df15ee1158a515df8087994bf59dab99fdf70a740088","base_tensors":["h.0.mlp.weight","h.1.mlp.weight","h.2.mlp.weight"],"malmen":"0.1.0"}');
INSERT INTO "entries" VALUES('sha256:ba08973c7a0454924cce6fa48b00220bf3d720d3b3324d6ec4626856d304d944',2,1,'register','applied',NULL,NULL,NULL,NULL,'sha256:cdf8149efa5fdfcc57e089ff825bde346e5828dacf816aa13a85a30c70236f07',NULL,'2026-11-21T21:31:37.778643+00:00','','{"architecture":"sha256:7912a59b41ea87778347df15ee1158a515df8087994bf59dab99fdf70a740088","base_tensors":["h.0.mlp.weight","h.1.mlp.weight","h.2.mlp.weight"],"malmen":"0.1.0"}');
INSERT INTO "entries" VALUES('sha256:df0fbede3ddd9c24dfbee8d36c9f1fc7b0eae64f67a8b0b58338e5fa8bc27fa4',1,2,'apply','applied','sha256:462d02be0120c6556b8c0527c4dd613e49083af1902a0b12cca2373d82404487','sha256:e7240e49b1e5a02f548772c9ae736415cb84ee7ef90f1c256f7c120518a12f26',NULL,'editor-1','sha256:f31c5bde25dade6af859dd52904695868c59d19417cc44d9e558a86a2e576e7a','facts.jsonl','2026-11-21T21:31:37.961610+00:00','malmen apply facts.jsonl','{"malmen":"0.1.0","torch":"2.6"}');
INSERT INTO "entries" VALUES('sha256:2ab4bbadcc56acc66edff631a7ada4f8d46e3fe1ffc41602ffaa51618f6aef89',1,3,'apply','applied','sha256:df0fbede3ddd9c24dfbee8d36c9f1fc7b0eae64f67a8b0b58338e5fa8bc27fa4','sha256:28c58c71257664410c7c9a54c910d08367c1aaa945f43628160f99f78e226c83',NULL,'editor-1','sha256:f3abace4a04e1ca8addef652df04cc8ea563e8426b8b6d7140de2392106a875e','facts.jsonl','2026-11-21T21:31:38.185468+00:00','malmen apply facts.jsonl','{"malmen":"0.1.0","torch":"2.6"}');
INSERT INTO "entries" VALUES('sha256:fd124e41115aef93384195376e9d8f220f04c512eb76243df09e2e5b02e83d1a',1,4,'revert','applied','sha256:2ab4bbadcc56acc66edff631a7ada4f8d46e3fe1ffc41602ffaa51618f6aef89','sha256:6c6a7c17043c3f0eaa9daee86725cec13273f8e076f8c51e8d00fda357b8d71c','sha256:df0fbede3ddd9c24dfbee8d36c9f1fc7b0eae64f67a8b0b58338e5fa8bc27fa4','editor-1','sha256:94ec4fcc3985e4363c04b97a31a94877d225647507838ec14b794d83b9212ae5',NULL,'2026-11-21T21:31:38.329550+00:00','malmen revert','{"malmen":"0.1.0"}');
INSERT INTO "entries" VALUES('sha256:153e8fc284ad75dbc9195c0e86d16130ece493bc1b42b01e6ee8da823eca648f',1,5,'apply','applied','sha256:fd124e41115aef93384195376e9d8f220f04c512eb76243df09e2e5b02e83d1a','sha256:df7a42f3ac87c53821c59773bea9e5d420e98f917cfcea2ad23f965f70bde0eb',NULL,'editor-1','sha256:7320f50cafccc106ec468a9cb6bbd09017f54ee55e1a1e4ea22347a8c40dba3b','facts.jsonl','2026-11-21T21:31:38.553719+00:00','malmen apply facts.jsonl','{"malmen":"0.1.0","torch":"2.6"}');
INSERT INTO "entries" VALUES('sha256:f2ecdee215dd3203b40f1d9874d8bd8258a3ad3ffd4e76bef543954c5a75a451',1,6,'revert','applied','sha256:153e8fc284ad75dbc9195c0e86d16130ece493bc1b42b01e6ee8da823eca648f','sha256:df7a42f3ac87c53821c59773bea9e5d420e98f917cfcea2ad23f965f70bde0eb','sha256:153e8fc284ad75dbc9195c0e86d16130ece493bc1b42b01e6ee8da823eca648f','editor-1','sha256:94ec4fcc3985e4363c04b97a31a94877d225647507838ec14b794d83b9212ae5',NULL,'2026-11-21T21:31:38.665566+00:00','malmen revert','{"malmen":"0.1.0"}');
INSERT INTO "entries" VALUES('sha256:e8e186dc127f32b90d86b582057a5338679b7017f5656a8ff60b0666fa83da84',1,7,'revert','applied','sha256:f2ecdee215dd3203b40f1d9874d8bd8258a3ad3ffd4e76bef543954c5a75a451','sha256:df7a42f3ac87c53821c59773bea9e5d420e98f917cfcea2ad23f965f70bde0eb','sha256:f2ecdee215dd3203b40f1d9874d8bd8258a3ad3ffd4e76bef543954c5a75a451','editor-1','sha256:7320f50cafccc106ec468a9cb6bbd09017f54ee55e1a1e4ea22347a8c40dba3b',NULL,'2026-11-21T21:31:38.777551+00:00','malmen revert','{"malmen":"0.1.0"}');
INSERT INTO "entries" VALUES('sha256:313ecb0833510fe365f5d0b52b4e8e97110f7a4e6875b80631134ff51139df57',1,8,'apply','applied','sha256:e8e186dc127f32b90d86b582057a5338679b7017f5656a8ff60b0666fa83da84','sha256:7245ccbe9830bff22f451925f9504a306ed68bd16bfdf31311ac5a5bc1876148',NULL,'editor-1','sha256:f32de32aeca7a4b0018d2062664e485399d0b3b93525db7a27f5324fe2324f98','facts.jsonl','2026-11-21T21:31:39.109790+00:00','malmen apply facts.jsonl','{"malmen":"0.1.0","torch":"2.6"}');
CREATE TABLE evaluation_results (
	evaluation_id TEXT NOT NULL, 
	position INTEGER NOT NULL, 
	fact_digest TEXT NOT NULL, 
	content TEXT NOT NULL, 
	CONSTRAINT pk_evaluation_results PRIMARY KEY (evaluation_id, position), 
	CONSTRAINT fk_evaluation_results_evaluation_id FOREIGN KEY(evaluation_id) REFERENCES evaluations (id) ON DELETE CASCADE
);
INSERT INTO "evaluation_results" VALUES('sha256:fc207025c4e6118f39b5c3208a075ddb8ce70da8130361f72a656accf86899a0',0,'sha256:4832ad0c1dc13c66dd774fb5e36d5d08bac9e9dde1d1134686372f2bc93fe825','{"accuracy":0.5,"digest":"sha256:4832ad0c1dc13c66dd774fb5e36d5d08bac9e9dde1d1134686372f2bc93fe825","prompt":"f"}');
INSERT INTO "evaluation_results" VALUES('sha256:fc207025c4e6118f39b5c3208a075ddb8ce70da8130361f72a656accf86899a0',1,'sha256:a8632fe3361a2a5b3dcf70e2bf8cd14c4dd03c33f06d493d352a6ba6ed74e39f','{"accuracy":0.5,"digest":"sha256:a8632fe3361a2a5b3dcf70e2bf8cd14c4dd03c33f06d493d352a6ba6ed74e39f","prompt":"g"}');
INSERT INTO "evaluation_results" VALUES('sha256:a83e9cd5ab6c812ab23d45799f906ef129f30ef3f2a38f2d8b01186f201d101f',0,'sha256:7388bd4029282c5cf80745c6ed56756627ead4d23c40e83bc8bef8fe6e3f6bbc','{"accuracy":0.5,"digest":"sha256:7388bd4029282c5cf80745c6ed56756627ead4d23c40e83bc8bef8fe6e3f6bbc","prompt":"e"}');
CREATE TABLE evaluations (
	id TEXT NOT NULL, 
	model_id INTEGER NOT NULL, 
	entry_id TEXT, 
	editor_id TEXT, 
	source TEXT, 
	facts_digest TEXT NOT NULL, 
	facts INTEGER NOT NULL, 
	results_digest TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	command TEXT NOT NULL, 
	details TEXT NOT NULL, 
	CONSTRAINT pk_evaluations PRIMARY KEY (id), 
	CONSTRAINT fk_evaluations_model_id FOREIGN KEY(model_id) REFERENCES models (id), 
	CONSTRAINT fk_evaluations_entry_id FOREIGN KEY(entry_id) REFERENCES entries (id)
);
INSERT INTO "evaluations" VALUES('sha256:fc207025c4e6118f39b5c3208a075ddb8ce70da8130361f72a656accf86899a0',1,NULL,'editor-1','facts.jsonl','sha256:bec36f75cea95324ab42b6ce54cd4078d3e68c36ae4931d82d1e988cd2d00a63',2,'sha256:5dcba654e8fb3a027d9d2531137d17e5e03eae64e631ae8b98a96c1c865221ff','2026-11-21T21:31:39.225852+00:00','malmen eval','{"scores":{"ES":0.5}}');
INSERT INTO "evaluations" VALUES('sha256:a83e9cd5ab6c812ab23d45799f906ef129f30ef3f2a38f2d8b01186f201d101f',1,'sha256:313ecb0833510fe365f5d0b52b4e8e97110f7a4e6875b80631134ff51139df57','editor-1','facts.jsonl','sha256:7245ccbe9830bff22f451925f9504a306ed68bd16bfdf31311ac5a5bc1876148',1,'sha256:5ed6332e5d30679e244aef00ed9664d07338cb7ea7e6759425913a3a1879708e','2026-11-21T21:31:39.245277+00:00','malmen eval','{"scores":{"ES":0.5}}');
CREATE TABLE fact_rows (
	edit_digest TEXT NOT NULL, 
	pack_id INTEGER NOT NULL, 
	start INTEGER NOT NULL, 
	count INTEGER NOT NULL, 
	CONSTRAINT pk_fact_rows PRIMARY KEY (edit_digest, pack_id), 
	CONSTRAINT fk_fact_rows_pack_id FOREIGN KEY(pack_id) REFERENCES row_packs (id) ON DELETE CASCADE
);
INSERT INTO "fact_rows" VALUES('sha256:aa7a8e16009c02dc3872706e99af5dd0bd3515fb4b4383fe553a3c7702a9a06d',1,0,1);
INSERT INTO "fact_rows" VALUES('sha256:1455bebe2414c0e2f37ff49e99b42a4b431ef0c343742985e868038faf74f37c',1,1,1);
INSERT INTO "fact_rows" VALUES('sha256:d0faf11595b72c68a58aa983efffbb1435c60fc3fe36b97b59fe5cfd9e0f51e0',1,2,1);
INSERT INTO "fact_rows" VALUES('sha256:aa7a8e16009c02dc3872706e99af5dd0bd3515fb4b4383fe553a3c7702a9a06d',2,0,1);
INSERT INTO "fact_rows" VALUES('sha256:1455bebe2414c0e2f37ff49e99b42a4b431ef0c343742985e868038faf74f37c',2,1,1);
INSERT INTO "fact_rows" VALUES('sha256:d0faf11595b72c68a58aa983efffbb1435c60fc3fe36b97b59fe5cfd9e0f51e0',2,2,1);
INSERT INTO "fact_rows" VALUES('sha256:aa7a8e16009c02dc3872706e99af5dd0bd3515fb4b4383fe553a3c7702a9a06d',3,0,1);
INSERT INTO "fact_rows" VALUES('sha256:1455bebe2414c0e2f37ff49e99b42a4b431ef0c343742985e868038faf74f37c',3,1,1);
INSERT INTO "fact_rows" VALUES('sha256:d0faf11595b72c68a58aa983efffbb1435c60fc3fe36b97b59fe5cfd9e0f51e0',3,2,1);
INSERT INTO "fact_rows" VALUES('sha256:69dd08224e069af3c40e8bd4e4c0a28a500c2ac853006b8103e100869052510a',4,0,1);
INSERT INTO "fact_rows" VALUES('sha256:3ae3c4f8e09d55a9620b8969b4238c42f12c8e482a87a81b3b767b553a19e35f',4,1,1);
INSERT INTO "fact_rows" VALUES('sha256:69dd08224e069af3c40e8bd4e4c0a28a500c2ac853006b8103e100869052510a',5,0,1);
INSERT INTO "fact_rows" VALUES('sha256:3ae3c4f8e09d55a9620b8969b4238c42f12c8e482a87a81b3b767b553a19e35f',5,1,1);
INSERT INTO "fact_rows" VALUES('sha256:69dd08224e069af3c40e8bd4e4c0a28a500c2ac853006b8103e100869052510a',6,0,1);
INSERT INTO "fact_rows" VALUES('sha256:3ae3c4f8e09d55a9620b8969b4238c42f12c8e482a87a81b3b767b553a19e35f',6,1,1);
INSERT INTO "fact_rows" VALUES('sha256:0cf1af265b5c4ee246290d90f868ff1d1d15dfcbc9243c752302011066b1891d',7,0,1);
INSERT INTO "fact_rows" VALUES('sha256:0cf1af265b5c4ee246290d90f868ff1d1d15dfcbc9243c752302011066b1891d',8,0,1);
INSERT INTO "fact_rows" VALUES('sha256:0cf1af265b5c4ee246290d90f868ff1d1d15dfcbc9243c752302011066b1891d',9,0,1);
INSERT INTO "fact_rows" VALUES('sha256:7388bd4029282c5cf80745c6ed56756627ead4d23c40e83bc8bef8fe6e3f6bbc',10,0,1);
INSERT INTO "fact_rows" VALUES('sha256:7388bd4029282c5cf80745c6ed56756627ead4d23c40e83bc8bef8fe6e3f6bbc',11,0,1);
INSERT INTO "fact_rows" VALUES('sha256:7388bd4029282c5cf80745c6ed56756627ead4d23c40e83bc8bef8fe6e3f6bbc',12,0,1);
CREATE TABLE fact_set_members (
	fact_set_digest TEXT NOT NULL, 
	position INTEGER NOT NULL, 
	fact_digest TEXT NOT NULL, 
	CONSTRAINT pk_fact_set_members PRIMARY KEY (fact_set_digest, position), 
	CONSTRAINT fk_fact_set_members_fact_set_digest FOREIGN KEY(fact_set_digest) REFERENCES fact_sets (digest) ON DELETE CASCADE, 
	CONSTRAINT fk_fact_set_members_fact_digest FOREIGN KEY(fact_digest) REFERENCES facts (digest)
);
INSERT INTO "fact_set_members" VALUES('sha256:e7240e49b1e5a02f548772c9ae736415cb84ee7ef90f1c256f7c120518a12f26',0,'sha256:aa7a8e16009c02dc3872706e99af5dd0bd3515fb4b4383fe553a3c7702a9a06d');
INSERT INTO "fact_set_members" VALUES('sha256:e7240e49b1e5a02f548772c9ae736415cb84ee7ef90f1c256f7c120518a12f26',1,'sha256:1455bebe2414c0e2f37ff49e99b42a4b431ef0c343742985e868038faf74f37c');
INSERT INTO "fact_set_members" VALUES('sha256:e7240e49b1e5a02f548772c9ae736415cb84ee7ef90f1c256f7c120518a12f26',2,'sha256:d0faf11595b72c68a58aa983efffbb1435c60fc3fe36b97b59fe5cfd9e0f51e0');
INSERT INTO "fact_set_members" VALUES('sha256:28c58c71257664410c7c9a54c910d08367c1aaa945f43628160f99f78e226c83',0,'sha256:69dd08224e069af3c40e8bd4e4c0a28a500c2ac853006b8103e100869052510a');
INSERT INTO "fact_set_members" VALUES('sha256:28c58c71257664410c7c9a54c910d08367c1aaa945f43628160f99f78e226c83',1,'sha256:3ae3c4f8e09d55a9620b8969b4238c42f12c8e482a87a81b3b767b553a19e35f');
INSERT INTO "fact_set_members" VALUES('sha256:6c6a7c17043c3f0eaa9daee86725cec13273f8e076f8c51e8d00fda357b8d71c',0,'sha256:aa7a8e16009c02dc3872706e99af5dd0bd3515fb4b4383fe553a3c7702a9a06d');
INSERT INTO "fact_set_members" VALUES('sha256:df7a42f3ac87c53821c59773bea9e5d420e98f917cfcea2ad23f965f70bde0eb',0,'sha256:0cf1af265b5c4ee246290d90f868ff1d1d15dfcbc9243c752302011066b1891d');
INSERT INTO "fact_set_members" VALUES('sha256:7245ccbe9830bff22f451925f9504a306ed68bd16bfdf31311ac5a5bc1876148',0,'sha256:7388bd4029282c5cf80745c6ed56756627ead4d23c40e83bc8bef8fe6e3f6bbc');
CREATE TABLE fact_sets (
	digest TEXT NOT NULL, 
	size INTEGER NOT NULL, 
	CONSTRAINT pk_fact_sets PRIMARY KEY (digest)
);
INSERT INTO "fact_sets" VALUES('sha256:e7240e49b1e5a02f548772c9ae736415cb84ee7ef90f1c256f7c120518a12f26',3);
INSERT INTO "fact_sets" VALUES('sha256:28c58c71257664410c7c9a54c910d08367c1aaa945f43628160f99f78e226c83',2);
INSERT INTO "fact_sets" VALUES('sha256:6c6a7c17043c3f0eaa9daee86725cec13273f8e076f8c51e8d00fda357b8d71c',1);
INSERT INTO "fact_sets" VALUES('sha256:df7a42f3ac87c53821c59773bea9e5d420e98f917cfcea2ad23f965f70bde0eb',1);
INSERT INTO "fact_sets" VALUES('sha256:7245ccbe9830bff22f451925f9504a306ed68bd16bfdf31311ac5a5bc1876148',1);
CREATE TABLE facts (
	digest TEXT NOT NULL, 
	edit_digest TEXT NOT NULL, 
	prompt TEXT NOT NULL, 
	target TEXT NOT NULL, 
	subject TEXT, 
	content TEXT NOT NULL, 
	CONSTRAINT pk_facts PRIMARY KEY (digest)
);
INSERT INTO "facts" VALUES('sha256:aa7a8e16009c02dc3872706e99af5dd0bd3515fb4b4383fe553a3c7702a9a06d','sha256:aa7a8e16009c02dc3872706e99af5dd0bd3515fb4b4383fe553a3c7702a9a06d','a','yes',NULL,'{"prompt":"a","target":"yes"}');
INSERT INTO "facts" VALUES('sha256:1455bebe2414c0e2f37ff49e99b42a4b431ef0c343742985e868038faf74f37c','sha256:1455bebe2414c0e2f37ff49e99b42a4b431ef0c343742985e868038faf74f37c','b','yes',NULL,'{"prompt":"b","target":"yes"}');
INSERT INTO "facts" VALUES('sha256:d0faf11595b72c68a58aa983efffbb1435c60fc3fe36b97b59fe5cfd9e0f51e0','sha256:d0faf11595b72c68a58aa983efffbb1435c60fc3fe36b97b59fe5cfd9e0f51e0','c','yes',NULL,'{"prompt":"c","target":"yes"}');
INSERT INTO "facts" VALUES('sha256:69dd08224e069af3c40e8bd4e4c0a28a500c2ac853006b8103e100869052510a','sha256:69dd08224e069af3c40e8bd4e4c0a28a500c2ac853006b8103e100869052510a','b','no',NULL,'{"prompt":"b","target":"no"}');
INSERT INTO "facts" VALUES('sha256:3ae3c4f8e09d55a9620b8969b4238c42f12c8e482a87a81b3b767b553a19e35f','sha256:3ae3c4f8e09d55a9620b8969b4238c42f12c8e482a87a81b3b767b553a19e35f','d','yes',NULL,'{"prompt":"d","target":"yes"}');
INSERT INTO "facts" VALUES('sha256:0cf1af265b5c4ee246290d90f868ff1d1d15dfcbc9243c752302011066b1891d','sha256:0cf1af265b5c4ee246290d90f868ff1d1d15dfcbc9243c752302011066b1891d','ünïcode .','',NULL,'{"prompt":"ünïcode .","target":"\u0007"}');
INSERT INTO "facts" VALUES('sha256:7388bd4029282c5cf80745c6ed56756627ead4d23c40e83bc8bef8fe6e3f6bbc','sha256:7388bd4029282c5cf80745c6ed56756627ead4d23c40e83bc8bef8fe6e3f6bbc','e','yes',NULL,'{"prompt":"e","target":"yes"}');
CREATE TABLE models (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	path TEXT NOT NULL, 
	base_digest TEXT NOT NULL, 
	manifest TEXT NOT NULL, 
	architecture TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	CONSTRAINT pk_models PRIMARY KEY (id), 
	CONSTRAINT uq_models_name UNIQUE (name), 
	CONSTRAINT uq_models_path UNIQUE (path)
);
INSERT INTO "models" VALUES(1,'tiny','/world/model','sha256:572ca9e58b678959b6ae86bbbea03c2d6042808cb755aece1080dc7d4e2968b9','{"others":{"config.json":"sha256:8e9d21a8818ac672ea522cbb09b8a360ffbda0bffac44409136b5a4b11f685a9","tokenizer.json":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"tensors":{"embed.weight":{"digest":"sha256:197fdf59e8164805652d359c2004afdefc79c57a266636b3329156596196fe76","dtype":"F32","file":"model.safetensors","shape":[9,4],"start":648,"stop":792},"h.0.mlp.weight":{"digest":"sha256:446f7bac43e66b863b5c83a8f8ed7b2708f675437b45c7c6dd210aa3a2375be8","dtype":"F32","file":"model.safetensors","shape":[6,4],"start":360,"stop":456},"h.1.mlp.weight":{"digest":"sha256:d28b2b4dc004c29eb738fefb746502d18e5c54a3b3f903664a64acf5bc84840f","dtype":"F32","file":"model.safetensors","shape":[6,4],"start":456,"stop":552},"h.2.mlp.weight":{"digest":"sha256:9979d00dade64391fc3438a6d1f609297729d9ecb7f37621bd0b267396f9225a","dtype":"F32","file":"model.safetensors","shape":[6,4],"start":552,"stop":648}},"weights":{"model.safetensors":{"digest":"sha256:371a62d87aed2e731dd46e9408c16130ce9f7c948979aba8b9ec20ae8b88f89b","header_digest":"sha256:4e1d8ac9f2012990e23129ac2992f47abe167b27f74e6e57097c90761b47c627","header_size":360,"size":792}}}','{"layers":3}','2026-11-21T21:31:37.615786+00:00');
INSERT INTO "models" VALUES(2,'other','/world/other','sha256:8adee807909619da0bf919db27ca5117ca9421a02fa31773ddc377acca69f8c9','{"others":{"config.json":"sha256:8e9d21a8818ac672ea522cbb09b8a360ffbda0bffac44409136b5a4b11f685a9","tokenizer.json":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"tensors":{"embed.weight":{"digest":"sha256:4b5a56b5c80292eabbdeb2ff3eb2981af87107e1fe0effbbe54462500a7512d1","dtype":"F32","file":"model.safetensors","shape":[9,4],"start":648,"stop":792},"h.0.mlp.weight":{"digest":"sha256:39e2a4286f0f37eb0c59f6d025135302fc03336e2572d52ebc3c2dcb309edf82","dtype":"F32","file":"model.safetensors","shape":[6,4],"start":360,"stop":456},"h.1.mlp.weight":{"digest":"sha256:259f29ba9aa7b98e05d307855157687486f9c0e27ce0ead60ea8af04bf7aea0c","dtype":"F32","file":"model.safetensors","shape":[6,4],"start":456,"stop":552},"h.2.mlp.weight":{"digest":"sha256:99441160099624aa3b456a8a0a713e68594a082a323a9b3fcbec725bbbc3cc1f","dtype":"F32","file":"model.safetensors","shape":[6,4],"start":552,"stop":648}},"weights":{"model.safetensors":{"digest":"sha256:bdba527f04abf6b3af11b3ec88d742be497f06c095b0d7cd0c2ea437a5f3cd02","header_digest":"sha256:4e1d8ac9f2012990e23129ac2992f47abe167b27f74e6e57097c90761b47c627","header_size":360,"size":792}}}','{"layers":3}','2026-11-21T21:31:37.778517+00:00');
CREATE TABLE parameter_deltas (
	entry_id TEXT NOT NULL, 
	tensor TEXT NOT NULL, 
	"before" TEXT NOT NULL, 
	"after" TEXT NOT NULL, 
	norm FLOAT, 
	relative_norm FLOAT, 
	largest_change FLOAT, 
	effective_rank FLOAT, 
	share_moved FLOAT, 
	rounding_loss FLOAT, 
	ridge FLOAT, 
	step_size FLOAT, 
	preserved_strength FLOAT, 
	CONSTRAINT pk_parameter_deltas PRIMARY KEY (entry_id, tensor), 
	CONSTRAINT fk_parameter_deltas_entry_id FOREIGN KEY(entry_id) REFERENCES entries (id) ON DELETE CASCADE
);
INSERT INTO "parameter_deltas" VALUES('sha256:df0fbede3ddd9c24dfbee8d36c9f1fc7b0eae64f67a8b0b58338e5fa8bc27fa4','h.0.mlp.weight','sha256:446f7bac43e66b863b5c83a8f8ed7b2708f675437b45c7c6dd210aa3a2375be8','sha256:2095a604234b5063639bfc74d7d1c750835d145eb7fab1e67b15b27db3a3ce49',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:df0fbede3ddd9c24dfbee8d36c9f1fc7b0eae64f67a8b0b58338e5fa8bc27fa4','h.1.mlp.weight','sha256:d28b2b4dc004c29eb738fefb746502d18e5c54a3b3f903664a64acf5bc84840f','sha256:8c6142ca6985e1d51913e68508121a768179cace1e8516e9b2a1bf4bd21587ad',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:df0fbede3ddd9c24dfbee8d36c9f1fc7b0eae64f67a8b0b58338e5fa8bc27fa4','h.2.mlp.weight','sha256:9979d00dade64391fc3438a6d1f609297729d9ecb7f37621bd0b267396f9225a','sha256:3e4879fb5a1927832d2006787195d205ae510a766e433e2043f2c5bb9722c6d1',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:2ab4bbadcc56acc66edff631a7ada4f8d46e3fe1ffc41602ffaa51618f6aef89','h.0.mlp.weight','sha256:2095a604234b5063639bfc74d7d1c750835d145eb7fab1e67b15b27db3a3ce49','sha256:992a6eb9dc8e950055576ebb5f8273fe2073d5e9418d769b2add7ed7b9adc277',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:2ab4bbadcc56acc66edff631a7ada4f8d46e3fe1ffc41602ffaa51618f6aef89','h.1.mlp.weight','sha256:8c6142ca6985e1d51913e68508121a768179cace1e8516e9b2a1bf4bd21587ad','sha256:9777d28839a50e8b240b5bf769e62568bc1ac569ea6829a0c0e5f59829ab995c',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:2ab4bbadcc56acc66edff631a7ada4f8d46e3fe1ffc41602ffaa51618f6aef89','h.2.mlp.weight','sha256:3e4879fb5a1927832d2006787195d205ae510a766e433e2043f2c5bb9722c6d1','sha256:d3d3b4b41f355e3d612d1ff0c30e2127e8b02a55d86c3c54eb1fcb1a9e1b6281',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:fd124e41115aef93384195376e9d8f220f04c512eb76243df09e2e5b02e83d1a','h.0.mlp.weight','sha256:992a6eb9dc8e950055576ebb5f8273fe2073d5e9418d769b2add7ed7b9adc277','sha256:caa0b41b7f79d4056daa73617a92840566fd5113bc4113ea07db10b77dcb5d26',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:fd124e41115aef93384195376e9d8f220f04c512eb76243df09e2e5b02e83d1a','h.1.mlp.weight','sha256:9777d28839a50e8b240b5bf769e62568bc1ac569ea6829a0c0e5f59829ab995c','sha256:d8b1d6ec1bf3d3696291ba4aedfa8d5913e891418b8ebbdc2734ab761d40cbba',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:fd124e41115aef93384195376e9d8f220f04c512eb76243df09e2e5b02e83d1a','h.2.mlp.weight','sha256:d3d3b4b41f355e3d612d1ff0c30e2127e8b02a55d86c3c54eb1fcb1a9e1b6281','sha256:c25ea3459eba98cfcd4206b4a44c521df8c10c007a46440e21d6f46b9316cd6f',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:153e8fc284ad75dbc9195c0e86d16130ece493bc1b42b01e6ee8da823eca648f','h.0.mlp.weight','sha256:caa0b41b7f79d4056daa73617a92840566fd5113bc4113ea07db10b77dcb5d26','sha256:ecc907df01040671bce040a22cb95765d8b1ac8c3e923e9d4d722fa96a291df8',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:153e8fc284ad75dbc9195c0e86d16130ece493bc1b42b01e6ee8da823eca648f','h.1.mlp.weight','sha256:d8b1d6ec1bf3d3696291ba4aedfa8d5913e891418b8ebbdc2734ab761d40cbba','sha256:ad6eb673013163b394463f0f3bf91755a83534c27b8e1641ce878af29ea256c8',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:153e8fc284ad75dbc9195c0e86d16130ece493bc1b42b01e6ee8da823eca648f','h.2.mlp.weight','sha256:c25ea3459eba98cfcd4206b4a44c521df8c10c007a46440e21d6f46b9316cd6f','sha256:a032ed18cbf66849649fdc8ea87cc79f5ea8c7725d51f8d0bef6934a7b45f298',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:f2ecdee215dd3203b40f1d9874d8bd8258a3ad3ffd4e76bef543954c5a75a451','h.0.mlp.weight','sha256:ecc907df01040671bce040a22cb95765d8b1ac8c3e923e9d4d722fa96a291df8','sha256:caa0b41b7f79d4056daa73617a92840566fd5113bc4113ea07db10b77dcb5d26',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:f2ecdee215dd3203b40f1d9874d8bd8258a3ad3ffd4e76bef543954c5a75a451','h.1.mlp.weight','sha256:ad6eb673013163b394463f0f3bf91755a83534c27b8e1641ce878af29ea256c8','sha256:d8b1d6ec1bf3d3696291ba4aedfa8d5913e891418b8ebbdc2734ab761d40cbba',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:f2ecdee215dd3203b40f1d9874d8bd8258a3ad3ffd4e76bef543954c5a75a451','h.2.mlp.weight','sha256:a032ed18cbf66849649fdc8ea87cc79f5ea8c7725d51f8d0bef6934a7b45f298','sha256:c25ea3459eba98cfcd4206b4a44c521df8c10c007a46440e21d6f46b9316cd6f',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:e8e186dc127f32b90d86b582057a5338679b7017f5656a8ff60b0666fa83da84','h.0.mlp.weight','sha256:caa0b41b7f79d4056daa73617a92840566fd5113bc4113ea07db10b77dcb5d26','sha256:ecc907df01040671bce040a22cb95765d8b1ac8c3e923e9d4d722fa96a291df8',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:e8e186dc127f32b90d86b582057a5338679b7017f5656a8ff60b0666fa83da84','h.1.mlp.weight','sha256:d8b1d6ec1bf3d3696291ba4aedfa8d5913e891418b8ebbdc2734ab761d40cbba','sha256:ad6eb673013163b394463f0f3bf91755a83534c27b8e1641ce878af29ea256c8',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:e8e186dc127f32b90d86b582057a5338679b7017f5656a8ff60b0666fa83da84','h.2.mlp.weight','sha256:c25ea3459eba98cfcd4206b4a44c521df8c10c007a46440e21d6f46b9316cd6f','sha256:a032ed18cbf66849649fdc8ea87cc79f5ea8c7725d51f8d0bef6934a7b45f298',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:313ecb0833510fe365f5d0b52b4e8e97110f7a4e6875b80631134ff51139df57','h.0.mlp.weight','sha256:ecc907df01040671bce040a22cb95765d8b1ac8c3e923e9d4d722fa96a291df8','sha256:75621c0f11d65c1dc199d74ae88cc5537df12493d760d96445699177bd8faa8a',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:313ecb0833510fe365f5d0b52b4e8e97110f7a4e6875b80631134ff51139df57','h.1.mlp.weight','sha256:ad6eb673013163b394463f0f3bf91755a83534c27b8e1641ce878af29ea256c8','sha256:5d34c62ca11cb8967d583ad26fc192ca579cc31c60d77b1ab4afe01e78d14561',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:313ecb0833510fe365f5d0b52b4e8e97110f7a4e6875b80631134ff51139df57','h.2.mlp.weight','sha256:a032ed18cbf66849649fdc8ea87cc79f5ea8c7725d51f8d0bef6934a7b45f298','sha256:58052d5b768c205558d6670fd8ea61ca15e9080527e15936e2d9afc789abc02e',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE row_packs (
	id INTEGER NOT NULL, 
	entry_id TEXT NOT NULL, 
	editor_id TEXT NOT NULL, 
	layer TEXT NOT NULL, 
	object TEXT NOT NULL, 
	CONSTRAINT pk_row_packs PRIMARY KEY (id), 
	CONSTRAINT uq_row_packs_entry_id UNIQUE (entry_id, layer), 
	CONSTRAINT fk_row_packs_entry_id FOREIGN KEY(entry_id) REFERENCES entries (id) ON DELETE CASCADE, 
	CONSTRAINT fk_row_packs_editor_id FOREIGN KEY(editor_id) REFERENCES editors (id)
);
INSERT INTO "row_packs" VALUES(1,'sha256:df0fbede3ddd9c24dfbee8d36c9f1fc7b0eae64f67a8b0b58338e5fa8bc27fa4','editor-1','h.0.mlp.weight','sha256:78fb9025949b52925663de69acd58dce8e8d422f324ce24f1f35cfe395832497');
INSERT INTO "row_packs" VALUES(2,'sha256:df0fbede3ddd9c24dfbee8d36c9f1fc7b0eae64f67a8b0b58338e5fa8bc27fa4','editor-1','h.1.mlp.weight','sha256:d89f43a1ac4f7555f1052ebf4dfc9e2c734554094d62970be7c3a9710a6a1fce');
INSERT INTO "row_packs" VALUES(3,'sha256:df0fbede3ddd9c24dfbee8d36c9f1fc7b0eae64f67a8b0b58338e5fa8bc27fa4','editor-1','h.2.mlp.weight','sha256:830c3b213a78c2020391716f8273d3cea852e64a36d4357cf9971092c7f4dd33');
INSERT INTO "row_packs" VALUES(4,'sha256:2ab4bbadcc56acc66edff631a7ada4f8d46e3fe1ffc41602ffaa51618f6aef89','editor-1','h.0.mlp.weight','sha256:400042f4fbf2861d91b2fae07d066aa74ee027e109ccf9f8f3897c600e2b6bd8');
INSERT INTO "row_packs" VALUES(5,'sha256:2ab4bbadcc56acc66edff631a7ada4f8d46e3fe1ffc41602ffaa51618f6aef89','editor-1','h.1.mlp.weight','sha256:a1587b35827f4675a45b3d800322b286b7b6948f0b48753c1af251c3ff98f436');
INSERT INTO "row_packs" VALUES(6,'sha256:2ab4bbadcc56acc66edff631a7ada4f8d46e3fe1ffc41602ffaa51618f6aef89','editor-1','h.2.mlp.weight','sha256:5472fea883f2bb3270cae8a7df676045b126ffb6ffbdc821e0761f8adbcdfebc');
INSERT INTO "row_packs" VALUES(7,'sha256:153e8fc284ad75dbc9195c0e86d16130ece493bc1b42b01e6ee8da823eca648f','editor-1','h.0.mlp.weight','sha256:a30136b4d3f77f94746f42928d27a48695ba072ccbfd92be770999dd074538a1');
INSERT INTO "row_packs" VALUES(8,'sha256:153e8fc284ad75dbc9195c0e86d16130ece493bc1b42b01e6ee8da823eca648f','editor-1','h.1.mlp.weight','sha256:df2cd4713dd0ea5e62826c39c91551fa9dfd440d5fdea3f1ce61c2e8012d44ef');
INSERT INTO "row_packs" VALUES(9,'sha256:153e8fc284ad75dbc9195c0e86d16130ece493bc1b42b01e6ee8da823eca648f','editor-1','h.2.mlp.weight','sha256:99e314e6c03de452182466c6e062714aa1ccc8d3adec691947c4e53baf028894');
INSERT INTO "row_packs" VALUES(10,'sha256:313ecb0833510fe365f5d0b52b4e8e97110f7a4e6875b80631134ff51139df57','editor-1','h.0.mlp.weight','sha256:a30136b4d3f77f94746f42928d27a48695ba072ccbfd92be770999dd074538a1');
INSERT INTO "row_packs" VALUES(11,'sha256:313ecb0833510fe365f5d0b52b4e8e97110f7a4e6875b80631134ff51139df57','editor-1','h.1.mlp.weight','sha256:df2cd4713dd0ea5e62826c39c91551fa9dfd440d5fdea3f1ce61c2e8012d44ef');
INSERT INTO "row_packs" VALUES(12,'sha256:313ecb0833510fe365f5d0b52b4e8e97110f7a4e6875b80631134ff51139df57','editor-1','h.2.mlp.weight','sha256:99e314e6c03de452182466c6e062714aa1ccc8d3adec691947c4e53baf028894');
CREATE TABLE seals (
	name TEXT NOT NULL, 
	digest TEXT NOT NULL, 
	CONSTRAINT pk_seals PRIMARY KEY (name)
);
INSERT INTO "seals" VALUES('schema','sha256:044d98cbd56a8d9c0deb0622d5f19d65a4932b66ae30964ccce0fc25cd48ae48');
INSERT INTO "seals" VALUES('table alembic_version','sha256:aa6a31cb31f3eb4c5c477e78c017d33784fd8273d29dbfb6063931889a78b428');
INSERT INTO "seals" VALUES('table settings, row "ledger_id"','sha256:b4227c6b00ee68dd00f2abc95f23a194cd56f91d4c32450794372eff7fdf9a90');
INSERT INTO "seals" VALUES('table editors, row "editor-1"','sha256:7a326199e406ddb81cbe6b7ac7bb9d6914914ec0cb59a2f22489460f9bc8334f');
INSERT INTO "seals" VALUES('table entries, model 2','sha256:24ad8c28cfd33b51cae419fe8122bea3224312cec12635ccbbc176823e34b3a4');
INSERT INTO "seals" VALUES('table editors, row "unused"','sha256:f21427450185a1d03e70c8b7f6cb81c4c605a642efb69b5ca17babd13ef52eed');
INSERT INTO "seals" VALUES('table dropped_objects','sha256:879aee607eaa1379f7ce8fe8646087710c7096a7e9cce0ba4aef93643f5dc7ea');
INSERT INTO "seals" VALUES('table row_packs','sha256:9882b65f2f0fce03f397e5653c14ed99cde39202866a4bc2686d1bbce59830b6');
INSERT INTO "seals" VALUES('table entries, model 1','sha256:d1611377602f929de66be2029e24ef4e9f61fdff8b0e5a078a0484d70e902f8c');
INSERT INTO "seals" VALUES('table evaluations, row "sha256:fc207025c4e6118f39b5c3208a075ddb8ce70da8130361f72a656accf86899a0"','sha256:d1b57c710f41b1af16b2bb9e8ed72284030cdf4258ab6be690639b2464b91ac9');
INSERT INTO "seals" VALUES('table evaluations, row "sha256:a83e9cd5ab6c812ab23d45799f906ef129f30ef3f2a38f2d8b01186f201d101f"','sha256:d37778a2434b8637f82e2753f6603f8c2a5446f9e303945e096e183c0049b034');
INSERT INTO "seals" VALUES('table models, row 2','sha256:894948e96e1ccafb60f3786311c337ec42c2f0551cabcc6baf2787f0d7ce00a2');
INSERT INTO "seals" VALUES('table models, row 1','sha256:a1bfc750fdc495d51ad28b389e9261d92b7f48aeb6189ee74740d55553766f4c');
INSERT INTO "seals" VALUES('table splits, row "held-out"','sha256:44a8ce7b96a45c15f8276ab37bbddeef8b89f275a0e287b3a891e427fb377e58');
INSERT INTO "seals" VALUES('table splits, row "zsre"','sha256:d3983167c0c0698604865fa67591e0579817b83629b04005ea063f5372c8d9af');
CREATE TABLE settings (
	"key" TEXT NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT pk_settings PRIMARY KEY ("key")
);
INSERT INTO "settings" VALUES('ledger_id','9c6c85764163d6cfb72183f9985ac8a3');
CREATE TABLE splits (
	name TEXT NOT NULL, 
	path TEXT NOT NULL, 
	format TEXT, 
	on_conflict TEXT, 
	digest TEXT NOT NULL, 
	facts INTEGER NOT NULL, 
	added_at TEXT NOT NULL, 
	CONSTRAINT pk_splits PRIMARY KEY (name)
);
INSERT INTO "splits" VALUES('zsre','/world/facts.jsonl',NULL,NULL,'sha256:ea6898611f45fb2020668ad694efb3c456706373b293c0ea3e978b97597e6864',1,'2026-11-21T21:31:39.197801+00:00');
INSERT INTO "splits" VALUES('held-out','/world/facts.jsonl',NULL,'first','sha256:ea6898611f45fb2020668ad694efb3c456706373b293c0ea3e978b97597e6864',1,'2026-11-21T21:31:39.213731+00:00');
CREATE INDEX ix_fact_set_members_fact_digest ON fact_set_members (fact_digest);
CREATE INDEX ix_entries_fact_set_digest ON entries (fact_set_digest);
CREATE UNIQUE INDEX ix_entries_pending ON entries (model_id) WHERE status = 'pending';
CREATE INDEX ix_fact_rows_pack_id ON fact_rows (pack_id);
CREATE INDEX ix_evaluation_results_fact_digest ON evaluation_results (fact_digest);
COMMIT;
