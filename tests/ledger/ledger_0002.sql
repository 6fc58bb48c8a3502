BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0002');
CREATE TABLE dropped_objects (
	digest TEXT NOT NULL, 
	dropped_at TEXT NOT NULL, 
	CONSTRAINT pk_dropped_objects PRIMARY KEY (digest)
);
INSERT INTO "dropped_objects" VALUES('sha256:2095a604234b5063639bfc74d7d1c750835d145eb7fab1e67b15b27db3a3ce49','2026-11-21T11:16:04.269803+00:00');
INSERT INTO "dropped_objects" VALUES('sha256:3e4879fb5a1927832d2006787195d205ae510a766e433e2043f2c5bb9722c6d1','2026-11-21T11:16:04.269816+00:00');
INSERT INTO "dropped_objects" VALUES('sha256:8c6142ca6985e1d51913e68508121a768179cace1e8516e9b2a1bf4bd21587ad','2026-11-21T11:16:04.269820+00:00');
INSERT INTO "dropped_objects" VALUES('sha256:9777d28839a50e8b240b5bf769e62568bc1ac569ea6829a0c0e5f59829ab995c','2026-11-21T11:16:04.269824+00:00');
INSERT INTO "dropped_objects" VALUES('sha256:992a6eb9dc8e950055576ebb5f8273fe2073d5e9418d769b2add7ed7b9adc277','2026-11-21T11:16:04.269826+00:00');
INSERT INTO "dropped_objects" VALUES('sha256:c25ea3459eba98cfcd4206b4a44c521df8c10c007a46440e21d6f46b9316cd6f','2026-11-21T11:16:04.269830+00:00');
INSERT INTO "dropped_objects" VALUES('sha256:caa0b41b7f79d4056daa73617a92840566fd5113bc4113ea07db10b77dcb5d26','2026-11-21T11:16:04.269833+00:00');
INSERT INTO "dropped_objects" VALUES('sha256:d3d3b4b41f355e3d612d1ff0c30e2127e8b02a55d86c3c54eb1fcb1a9e1b6281','2026-11-21T11:16:04.269837+00:00');
INSERT INTO "dropped_objects" VALUES('sha256:d8b1d6ec1bf3d3696291ba4aedfa8d5913e891418b8ebbdc2734ab761d40cbba','2026-11-21T11:16:04.269840+00:00');
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
INSERT INTO "editors" VALUES('editor-1',1,'sha256:61d093cbc44e4a4df24c14cfa0a2db1db62c3618b160e62a69466ccebfbbe232','2026-11-21T11:16:04.156609+00:00',1,'{"rank":4}','{"ES":0.9}');
INSERT INTO "editors" VALUES('unused',1,'sha256:61d093cbc44e4a4df24c14cfa0a2db1db62c3618b160e62a69466ccebfbbe232','2026-11-21T11:16:04.168343+00:00',0,'{"rank":8}','{"ES":null}');
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
INSERT INTO "entries" VALUES('sha256:5db128f4aabc9ea4d39d155981d49575f9918398b4350408bc9186a49a59972b',1,1,'register','applied',NULL,NULL,NULL,NULL,'sha256:cdf8149efa5fdfcc57e089ff825bde346e5828dacf816aa13a85a30c70236f07',NULL,'2026-11-21T11:16:04.152381+00:00','','{"architecture":"sha256:7912a59b41ea87778347df15ee1158a515df8087994bf59dab99fdf70a740088","base_tensors":["h.0.mlp.weight","h.1.mlp.weight","h.2.mlp.weight"],"malmen":"0.1.0"}');
INSERT INTO "entries" VALUES('sha256:f7c69f1ce557588901a42dd8359fa2350eb07514d4c6ca46c8749d4344edf179',2,1,'register','applied',NULL,NULL,NULL,NULL,'sha256:cdf8149efa5fdfcc57e089ff825bde346e5828dacf816aa13a85a30c70236f07',NULL,'2026-11-21T11:16:04.164280+00:00','','{"architecture":"sha256:7912a59b41ea87778347df15ee1158a515df8087994bf59dab99fdf70a740088","base_tensors":["h.0.mlp.weight","h.1.mlp.weight","h.2.mlp.weight"],"malmen":"0.1.0"}');
INSERT INTO "entries" VALUES('sha256:a6dbcda71270afa7864f7e8873e83062f9cffba1aee8bb6f7e1d3c4303fcd70b',1,2,'apply','applied','sha256:5db128f4aabc9ea4d39d155981d49575f9918398b4350408bc9186a49a59972b','sha256:e7240e49b1e5a02f548772c9ae736415cb84ee7ef90f1c256f7c120518a12f26',NULL,'editor-1','sha256:f31c5bde25dade6af859dd52904695868c59d19417cc44d9e558a86a2e576e7a','facts.jsonl','2026-11-21T11:16:04.176771+00:00','malmen apply facts.jsonl','{"malmen":"0.1.0","torch":"2.6"}');
INSERT INTO "entries" VALUES('sha256:ed3604408ea6ffdc48cf76024abe6467dcf88b31879762a00431ab30945610ef',1,3,'apply','applied','sha256:a6dbcda71270afa7864f7e8873e83062f9cffba1aee8bb6f7e1d3c4303fcd70b','sha256:28c58c71257664410c7c9a54c910d08367c1aaa945f43628160f99f78e226c83',NULL,'editor-1','sha256:f3abace4a04e1ca8addef652df04cc8ea563e8426b8b6d7140de2392106a875e','facts.jsonl','2026-11-21T11:16:04.190945+00:00','malmen apply facts.jsonl','{"malmen":"0.1.0","torch":"2.6"}');
INSERT INTO "entries" VALUES('sha256:8d75a316a20f407ff79addab180824c758f5fd6fe13636fdded0912695a4c183',1,4,'revert','applied','sha256:ed3604408ea6ffdc48cf76024abe6467dcf88b31879762a00431ab30945610ef','sha256:6c6a7c17043c3f0eaa9daee86725cec13273f8e076f8c51e8d00fda357b8d71c','sha256:a6dbcda71270afa7864f7e8873e83062f9cffba1aee8bb6f7e1d3c4303fcd70b','editor-1','sha256:94ec4fcc3985e4363c04b97a31a94877d225647507838ec14b794d83b9212ae5',NULL,'2026-11-21T11:16:04.216225+00:00','malmen revert','{"malmen":"0.1.0"}');
INSERT INTO "entries" VALUES('sha256:04cbe047198bd90cf6b9b898cf51243fbd9f5eb53a797342ca8a58eb0fe7667b',1,5,'apply','applied','sha256:8d75a316a20f407ff79addab180824c758f5fd6fe13636fdded0912695a4c183','sha256:df7a42f3ac87c53821c59773bea9e5d420e98f917cfcea2ad23f965f70bde0eb',NULL,'editor-1','sha256:7320f50cafccc106ec468a9cb6bbd09017f54ee55e1a1e4ea22347a8c40dba3b','facts.jsonl','2026-11-21T11:16:04.242323+00:00','malmen apply facts.jsonl','{"malmen":"0.1.0","torch":"2.6"}');
INSERT INTO "entries" VALUES('sha256:4ade0b630f5b78220b8030f10d26ce81fc6c0cd11b25e2b921cb83900f202a63',1,6,'revert','applied','sha256:04cbe047198bd90cf6b9b898cf51243fbd9f5eb53a797342ca8a58eb0fe7667b','sha256:df7a42f3ac87c53821c59773bea9e5d420e98f917cfcea2ad23f965f70bde0eb','sha256:04cbe047198bd90cf6b9b898cf51243fbd9f5eb53a797342ca8a58eb0fe7667b','editor-1','sha256:94ec4fcc3985e4363c04b97a31a94877d225647507838ec14b794d83b9212ae5',NULL,'2026-11-21T11:16:04.248406+00:00','malmen revert','{"malmen":"0.1.0"}');
INSERT INTO "entries" VALUES('sha256:f6b4e1ff5da0ac8a29b5cc89368ce1399737e8093b5c07856efff47e11010620',1,7,'revert','applied','sha256:4ade0b630f5b78220b8030f10d26ce81fc6c0cd11b25e2b921cb83900f202a63','sha256:df7a42f3ac87c53821c59773bea9e5d420e98f917cfcea2ad23f965f70bde0eb','sha256:4ade0b630f5b78220b8030f10d26ce81fc6c0cd11b25e2b921cb83900f202a63','editor-1','sha256:7320f50cafccc106ec468a9cb6bbd09017f54ee55e1a1e4ea22347a8c40dba3b',NULL,'2026-11-21T11:16:04.254226+00:00','malmen revert','{"malmen":"0.1.0"}');
INSERT INTO "entries" VALUES('sha256:3e42f256f0d55695334e90e5a089ca395a99046241ce13e10ea5c51fb4770890',1,8,'apply','applied','sha256:f6b4e1ff5da0ac8a29b5cc89368ce1399737e8093b5c07856efff47e11010620','sha256:7245ccbe9830bff22f451925f9504a306ed68bd16bfdf31311ac5a5bc1876148',NULL,'editor-1','sha256:f32de32aeca7a4b0018d2062664e485399d0b3b93525db7a27f5324fe2324f98','facts.jsonl','2026-11-21T11:16:04.292575+00:00','malmen apply facts.jsonl','{"malmen":"0.1.0","torch":"2.6"}');
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
INSERT INTO "models" VALUES(1,'tiny','/world/model','sha256:572ca9e58b678959b6ae86bbbea03c2d6042808cb755aece1080dc7d4e2968b9','{"others":{"config.json":"sha256:8e9d21a8818ac672ea522cbb09b8a360ffbda0bffac44409136b5a4b11f685a9","tokenizer.json":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"tensors":{"embed.weight":{"digest":"sha256:197fdf59e8164805652d359c2004afdefc79c57a266636b3329156596196fe76","dtype":"F32","file":"model.safetensors","shape":[9,4],"start":648,"stop":792},"h.0.mlp.weight":{"digest":"sha256:446f7bac43e66b863b5c83a8f8ed7b2708f675437b45c7c6dd210aa3a2375be8","dtype":"F32","file":"model.safetensors","shape":[6,4],"start":360,"stop":456},"h.1.mlp.weight":{"digest":"sha256:d28b2b4dc004c29eb738fefb746502d18e5c54a3b3f903664a64acf5bc84840f","dtype":"F32","file":"model.safetensors","shape":[6,4],"start":456,"stop":552},"h.2.mlp.weight":{"digest":"sha256:9979d00dade64391fc3438a6d1f609297729d9ecb7f37621bd0b267396f9225a","dtype":"F32","file":"model.safetensors","shape":[6,4],"start":552,"stop":648}},"weights":{"model.safetensors":{"digest":"sha256:371a62d87aed2e731dd46e9408c16130ce9f7c948979aba8b9ec20ae8b88f89b","header_digest":"sha256:4e1d8ac9f2012990e23129ac2992f47abe167b27f74e6e57097c90761b47c627","header_size":360,"size":792}}}','{"layers":3}','2026-11-21T11:16:04.152206+00:00');
INSERT INTO "models" VALUES(2,'other','/world/other','sha256:8adee807909619da0bf919db27ca5117ca9421a02fa31773ddc377acca69f8c9','{"others":{"config.json":"sha256:8e9d21a8818ac672ea522cbb09b8a360ffbda0bffac44409136b5a4b11f685a9","tokenizer.json":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"tensors":{"embed.weight":{"digest":"sha256:4b5a56b5c80292eabbdeb2ff3eb2981af87107e1fe0effbbe54462500a7512d1","dtype":"F32","file":"model.safetensors","shape":[9,4],"start":648,"stop":792},"h.0.mlp.weight":{"digest":"sha256:39e2a4286f0f37eb0c59f6d025135302fc03336e2572d52ebc3c2dcb309edf82","dtype":"F32","file":"model.safetensors","shape":[6,4],"start":360,"stop":456},"h.1.mlp.weight":{"digest":"sha256:259f29ba9aa7b98e05d307855157687486f9c0e27ce0ead60ea8af04bf7aea0c","dtype":"F32","file":"model.safetensors","shape":[6,4],"start":456,"stop":552},"h.2.mlp.weight":{"digest":"sha256:99441160099624aa3b456a8a0a713e68594a082a323a9b3fcbec725bbbc3cc1f","dtype":"F32","file":"model.safetensors","shape":[6,4],"start":552,"stop":648}},"weights":{"model.safetensors":{"digest":"sha256:bdba527f04abf6b3af11b3ec88d742be497f06c095b0d7cd0c2ea437a5f3cd02","header_digest":"sha256:4e1d8ac9f2012990e23129ac2992f47abe167b27f74e6e57097c90761b47c627","header_size":360,"size":792}}}','{"layers":3}','2026-11-21T11:16:04.164142+00:00');
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
INSERT INTO "parameter_deltas" VALUES('sha256:a6dbcda71270afa7864f7e8873e83062f9cffba1aee8bb6f7e1d3c4303fcd70b','h.0.mlp.weight','sha256:446f7bac43e66b863b5c83a8f8ed7b2708f675437b45c7c6dd210aa3a2375be8','sha256:2095a604234b5063639bfc74d7d1c750835d145eb7fab1e67b15b27db3a3ce49',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:a6dbcda71270afa7864f7e8873e83062f9cffba1aee8bb6f7e1d3c4303fcd70b','h.1.mlp.weight','sha256:d28b2b4dc004c29eb738fefb746502d18e5c54a3b3f903664a64acf5bc84840f','sha256:8c6142ca6985e1d51913e68508121a768179cace1e8516e9b2a1bf4bd21587ad',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:a6dbcda71270afa7864f7e8873e83062f9cffba1aee8bb6f7e1d3c4303fcd70b','h.2.mlp.weight','sha256:9979d00dade64391fc3438a6d1f609297729d9ecb7f37621bd0b267396f9225a','sha256:3e4879fb5a1927832d2006787195d205ae510a766e433e2043f2c5bb9722c6d1',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:ed3604408ea6ffdc48cf76024abe6467dcf88b31879762a00431ab30945610ef','h.0.mlp.weight','sha256:2095a604234b5063639bfc74d7d1c750835d145eb7fab1e67b15b27db3a3ce49','sha256:992a6eb9dc8e950055576ebb5f8273fe2073d5e9418d769b2add7ed7b9adc277',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:ed3604408ea6ffdc48cf76024abe6467dcf88b31879762a00431ab30945610ef','h.1.mlp.weight','sha256:8c6142ca6985e1d51913e68508121a768179cace1e8516e9b2a1bf4bd21587ad','sha256:9777d28839a50e8b240b5bf769e62568bc1ac569ea6829a0c0e5f59829ab995c',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:ed3604408ea6ffdc48cf76024abe6467dcf88b31879762a00431ab30945610ef','h.2.mlp.weight','sha256:3e4879fb5a1927832d2006787195d205ae510a766e433e2043f2c5bb9722c6d1','sha256:d3d3b4b41f355e3d612d1ff0c30e2127e8b02a55d86c3c54eb1fcb1a9e1b6281',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:8d75a316a20f407ff79addab180824c758f5fd6fe13636fdded0912695a4c183','h.0.mlp.weight','sha256:992a6eb9dc8e950055576ebb5f8273fe2073d5e9418d769b2add7ed7b9adc277','sha256:caa0b41b7f79d4056daa73617a92840566fd5113bc4113ea07db10b77dcb5d26',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:8d75a316a20f407ff79addab180824c758f5fd6fe13636fdded0912695a4c183','h.1.mlp.weight','sha256:9777d28839a50e8b240b5bf769e62568bc1ac569ea6829a0c0e5f59829ab995c','sha256:d8b1d6ec1bf3d3696291ba4aedfa8d5913e891418b8ebbdc2734ab761d40cbba',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:8d75a316a20f407ff79addab180824c758f5fd6fe13636fdded0912695a4c183','h.2.mlp.weight','sha256:d3d3b4b41f355e3d612d1ff0c30e2127e8b02a55d86c3c54eb1fcb1a9e1b6281','sha256:c25ea3459eba98cfcd4206b4a44c521df8c10c007a46440e21d6f46b9316cd6f',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:04cbe047198bd90cf6b9b898cf51243fbd9f5eb53a797342ca8a58eb0fe7667b','h.0.mlp.weight','sha256:caa0b41b7f79d4056daa73617a92840566fd5113bc4113ea07db10b77dcb5d26','sha256:ecc907df01040671bce040a22cb95765d8b1ac8c3e923e9d4d722fa96a291df8',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:04cbe047198bd90cf6b9b898cf51243fbd9f5eb53a797342ca8a58eb0fe7667b','h.1.mlp.weight','sha256:d8b1d6ec1bf3d3696291ba4aedfa8d5913e891418b8ebbdc2734ab761d40cbba','sha256:ad6eb673013163b394463f0f3bf91755a83534c27b8e1641ce878af29ea256c8',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:04cbe047198bd90cf6b9b898cf51243fbd9f5eb53a797342ca8a58eb0fe7667b','h.2.mlp.weight','sha256:c25ea3459eba98cfcd4206b4a44c521df8c10c007a46440e21d6f46b9316cd6f','sha256:a032ed18cbf66849649fdc8ea87cc79f5ea8c7725d51f8d0bef6934a7b45f298',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:4ade0b630f5b78220b8030f10d26ce81fc6c0cd11b25e2b921cb83900f202a63','h.0.mlp.weight','sha256:ecc907df01040671bce040a22cb95765d8b1ac8c3e923e9d4d722fa96a291df8','sha256:caa0b41b7f79d4056daa73617a92840566fd5113bc4113ea07db10b77dcb5d26',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:4ade0b630f5b78220b8030f10d26ce81fc6c0cd11b25e2b921cb83900f202a63','h.1.mlp.weight','sha256:ad6eb673013163b394463f0f3bf91755a83534c27b8e1641ce878af29ea256c8','sha256:d8b1d6ec1bf3d3696291ba4aedfa8d5913e891418b8ebbdc2734ab761d40cbba',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:4ade0b630f5b78220b8030f10d26ce81fc6c0cd11b25e2b921cb83900f202a63','h.2.mlp.weight','sha256:a032ed18cbf66849649fdc8ea87cc79f5ea8c7725d51f8d0bef6934a7b45f298','sha256:c25ea3459eba98cfcd4206b4a44c521df8c10c007a46440e21d6f46b9316cd6f',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:f6b4e1ff5da0ac8a29b5cc89368ce1399737e8093b5c07856efff47e11010620','h.0.mlp.weight','sha256:caa0b41b7f79d4056daa73617a92840566fd5113bc4113ea07db10b77dcb5d26','sha256:ecc907df01040671bce040a22cb95765d8b1ac8c3e923e9d4d722fa96a291df8',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:f6b4e1ff5da0ac8a29b5cc89368ce1399737e8093b5c07856efff47e11010620','h.1.mlp.weight','sha256:d8b1d6ec1bf3d3696291ba4aedfa8d5913e891418b8ebbdc2734ab761d40cbba','sha256:ad6eb673013163b394463f0f3bf91755a83534c27b8e1641ce878af29ea256c8',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:f6b4e1ff5da0ac8a29b5cc89368ce1399737e8093b5c07856efff47e11010620','h.2.mlp.weight','sha256:c25ea3459eba98cfcd4206b4a44c521df8c10c007a46440e21d6f46b9316cd6f','sha256:a032ed18cbf66849649fdc8ea87cc79f5ea8c7725d51f8d0bef6934a7b45f298',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:3e42f256f0d55695334e90e5a089ca395a99046241ce13e10ea5c51fb4770890','h.0.mlp.weight','sha256:ecc907df01040671bce040a22cb95765d8b1ac8c3e923e9d4d722fa96a291df8','sha256:75621c0f11d65c1dc199d74ae88cc5537df12493d760d96445699177bd8faa8a',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:3e42f256f0d55695334e90e5a089ca395a99046241ce13e10ea5c51fb4770890','h.1.mlp.weight','sha256:ad6eb673013163b394463f0f3bf91755a83534c27b8e1641ce878af29ea256c8','sha256:5d34c62ca11cb8967d583ad26fc192ca579cc31c60d77b1ab4afe01e78d14561',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "parameter_deltas" VALUES('sha256:3e42f256f0d55695334e90e5a089ca395a99046241ce13e10ea5c51fb4770890','h.2.mlp.weight','sha256:a032ed18cbf66849649fdc8ea87cc79f5ea8c7725d51f8d0bef6934a7b45f298','sha256:58052d5b768c205558d6670fd8ea61ca15e9080527e15936e2d9afc789abc02e',1.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
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
INSERT INTO "row_packs" VALUES(1,'sha256:a6dbcda71270afa7864f7e8873e83062f9cffba1aee8bb6f7e1d3c4303fcd70b','editor-1','h.0.mlp.weight','sha256:78fb9025949b52925663de69acd58dce8e8d422f324ce24f1f35cfe395832497');
INSERT INTO "row_packs" VALUES(2,'sha256:a6dbcda71270afa7864f7e8873e83062f9cffba1aee8bb6f7e1d3c4303fcd70b','editor-1','h.1.mlp.weight','sha256:d89f43a1ac4f7555f1052ebf4dfc9e2c734554094d62970be7c3a9710a6a1fce');
INSERT INTO "row_packs" VALUES(3,'sha256:a6dbcda71270afa7864f7e8873e83062f9cffba1aee8bb6f7e1d3c4303fcd70b','editor-1','h.2.mlp.weight','sha256:830c3b213a78c2020391716f8273d3cea852e64a36d4357cf9971092c7f4dd33');
INSERT INTO "row_packs" VALUES(4,'sha256:ed3604408ea6ffdc48cf76024abe6467dcf88b31879762a00431ab30945610ef','editor-1','h.0.mlp.weight','sha256:400042f4fbf2861d91b2fae07d066aa74ee027e109ccf9f8f3897c600e2b6bd8');
INSERT INTO "row_packs" VALUES(5,'sha256:ed3604408ea6ffdc48cf76024abe6467dcf88b31879762a00431ab30945610ef','editor-1','h.1.mlp.weight','sha256:a1587b35827f4675a45b3d800322b286b7b6948f0b48753c1af251c3ff98f436');
INSERT INTO "row_packs" VALUES(6,'sha256:ed3604408ea6ffdc48cf76024abe6467dcf88b31879762a00431ab30945610ef','editor-1','h.2.mlp.weight','sha256:5472fea883f2bb3270cae8a7df676045b126ffb6ffbdc821e0761f8adbcdfebc');
INSERT INTO "row_packs" VALUES(7,'sha256:04cbe047198bd90cf6b9b898cf51243fbd9f5eb53a797342ca8a58eb0fe7667b','editor-1','h.0.mlp.weight','sha256:a30136b4d3f77f94746f42928d27a48695ba072ccbfd92be770999dd074538a1');
INSERT INTO "row_packs" VALUES(8,'sha256:04cbe047198bd90cf6b9b898cf51243fbd9f5eb53a797342ca8a58eb0fe7667b','editor-1','h.1.mlp.weight','sha256:df2cd4713dd0ea5e62826c39c91551fa9dfd440d5fdea3f1ce61c2e8012d44ef');
INSERT INTO "row_packs" VALUES(9,'sha256:04cbe047198bd90cf6b9b898cf51243fbd9f5eb53a797342ca8a58eb0fe7667b','editor-1','h.2.mlp.weight','sha256:99e314e6c03de452182466c6e062714aa1ccc8d3adec691947c4e53baf028894');
INSERT INTO "row_packs" VALUES(10,'sha256:3e42f256f0d55695334e90e5a089ca395a99046241ce13e10ea5c51fb4770890','editor-1','h.0.mlp.weight','sha256:a30136b4d3f77f94746f42928d27a48695ba072ccbfd92be770999dd074538a1');
INSERT INTO "row_packs" VALUES(11,'sha256:3e42f256f0d55695334e90e5a089ca395a99046241ce13e10ea5c51fb4770890','editor-1','h.1.mlp.weight','sha256:df2cd4713dd0ea5e62826c39c91551fa9dfd440d5fdea3f1ce61c2e8012d44ef');
INSERT INTO "row_packs" VALUES(12,'sha256:3e42f256f0d55695334e90e5a089ca395a99046241ce13e10ea5c51fb4770890','editor-1','h.2.mlp.weight','sha256:99e314e6c03de452182466c6e062714aa1ccc8d3adec691947c4e53baf028894');
CREATE TABLE settings (
	"key" TEXT NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT pk_settings PRIMARY KEY ("key")
);
INSERT INTO "settings" VALUES('ledger_id','e3e286949626ce200bf58df05ce6ff77');
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
INSERT INTO "splits" VALUES('zsre','/world/facts.jsonl',NULL,NULL,'sha256:ea6898611f45fb2020668ad694efb3c456706373b293c0ea3e978b97597e6864',1,'2026-11-21T11:16:04.297953+00:00');
INSERT INTO "splits" VALUES('held-out','/world/facts.jsonl',NULL,'first','sha256:ea6898611f45fb2020668ad694efb3c456706373b293c0ea3e978b97597e6864',1,'2026-11-21T11:16:04.299094+00:00');
CREATE INDEX ix_fact_set_members_fact_digest ON fact_set_members (fact_digest);
CREATE INDEX ix_entries_fact_set_digest ON entries (fact_set_digest);
CREATE UNIQUE INDEX ix_entries_pending ON entries (model_id) WHERE status = 'pending';
CREATE INDEX ix_fact_rows_pack_id ON fact_rows (pack_id);
COMMIT;
